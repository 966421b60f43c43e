//! Loading of kernel images that are made byte by byte, into small memories.

use std::io::Write;

use super::*;
use crate::config::MemoryConfig;
use crate::memory;

const RAM: u64 = 0x400_0000;
const RSDP: u64 = 0xe_0000;

struct Files(vmm_sys_util::tempdir::TempDir);

impl Files {
    fn new() -> Self {
        Self(vmm_sys_util::tempdir::TempDir::new().expect("directory"))
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.0.as_path().join(name);
        File::create(&path)
            .and_then(|mut file| file.write_all(contents))
            .expect("file");
        path
    }
}

fn ram() -> Memory {
    memory::allocate(
        &MemoryConfig::plain(RAM),
        0,
        memory::Backing::Anonymous,
        None,
    )
    .expect("memory")
}

/// A bzImage of two setup sectors and 0x40 bytes of protected-mode code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    image.extend([0xab; 0x40]);
    image
}

/// An ELF with a note that gives 0x0100_0010 as PVH entry, and a segment at 16 MiB of 8 bytes that
/// is 0x2000 in memory.
fn vmlinux() -> Vec<u8> {
    let mut image = vec![0; 0x200];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    image[16..20].copy_from_slice(&[2, 0, 62, 0]);
    image[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    image[32..40].copy_from_slice(&64_u64.to_le_bytes());
    image[52..58].copy_from_slice(&[64, 0, 56, 0, 2, 0]);
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
        image[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (position, value) in [
            (8, offset),
            (16, address),
            (24, address),
            (32, file),
            (40, memory),
        ] {
            image[at + position..at + position + 8].copy_from_slice(&value.to_le_bytes());
        }
    };
    header(64, 1, 0x100, 0x100_0000, 8, 0x2000);
    header(120, 4, 0x180, 0, 20, 20);
    image[0x100..0x108].copy_from_slice(b"kernel!!");
    image[0x180..0x190]
        .copy_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0]);
    image[0x190..0x194].copy_from_slice(&0x100_0010_u32.to_le_bytes());
    image
}

fn bytes<const N: usize>(memory: &Memory, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("read");
    bytes
}

fn load(kernel: &Path, initramfs: Option<&Path>, memory: &Memory) -> Result<CpuState, BootError> {
    Images::open(kernel, initramfs, "console=ttyS0")?.load(memory, RAM, RSDP, false)
}

#[test]
fn what_somebody_else_has_chosen_is_a_regular_file_and_is_not_waited_for() {
    let files = Files::new();
    let kernel = files.file("kernel", &bzimage());
    assert!(Images::open_regular(&kernel, Some(&kernel), "").is_ok());
    let pipe = files.0.as_path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a new name");
    let whole = files.0.as_path();
    for odd in [&pipe as &Path, whole, Path::new("/dev/zero")] {
        for (kernel, initramfs, option) in [
            (odd, None, "--kernel"),
            (&kernel as &Path, Some(odd), "--initramfs"),
        ] {
            let opened = Images::open_regular(kernel, initramfs, "");
            let text = opened.err().expect("refused").to_string();
            let begin = format!("{option} {}: this is no regular file", odd.display());
            assert!(text.starts_with(&begin), "{text}");
        }
    }
}

#[test]
fn a_bzimage_gets_boot_params() {
    let (files, memory) = (Files::new(), ram());
    let kernel = files.file("bzImage", &bzimage());
    let initramfs = files.file("initramfs", &[0x11; 0x1234]);
    let state = load(&kernel, Some(&initramfs), &memory).expect("loads");

    assert_eq!((state.regs().rip, state.regs().rsi), (0x10_0000, 0x7000));
    assert_eq!(bytes::<0x40>(&memory, 0x10_0000), [0xab; 0x40]);
    assert_eq!(bytes::<14>(&memory, 0x2_0000), *b"console=ttyS0\0");
    let params = 0x7000;
    assert_eq!(bytes::<8>(&memory, params + 0x70), RSDP.to_le_bytes());
    assert_eq!(bytes::<4>(&memory, params + 0x202), *b"HdrS");
    assert_eq!(bytes::<1>(&memory, params + 0x210), [0xff]);
    assert_eq!(
        bytes::<4>(&memory, params + 0x228),
        0x2_0000_u32.to_le_bytes()
    );
    // The highest page-aligned place below the end of memory.
    assert_eq!(
        bytes::<4>(&memory, params + 0x218),
        0x3ff_e000_u32.to_le_bytes()
    );
    assert_eq!(
        bytes::<4>(&memory, params + 0x21c),
        0x1234_u32.to_le_bytes()
    );
    assert_eq!(bytes::<0x1000>(&memory, 0x3ff_e000), [0x11; 0x1000]);
    // First entry of the e820 table: conventional memory.
    assert_eq!(bytes::<8>(&memory, params + 0x2d0), [0; 8]);
    assert_eq!(
        bytes::<8>(&memory, params + 0x2d8),
        0xa_0000_u64.to_le_bytes()
    );
    assert_eq!(bytes::<4>(&memory, params + 0x2e0), 1_u32.to_le_bytes());
    assert_eq!(bytes::<1>(&memory, params + 0x1e8), [7]);
}

#[test]
fn a_pvh_kernel_gets_start_info() {
    let (files, memory) = (Files::new(), ram());
    let kernel = files.file("vmlinux", &vmlinux());
    let initramfs = files.file("initramfs", b"070701");
    let state = load(&kernel, Some(&initramfs), &memory).expect("loads");

    assert_eq!((state.regs().rip, state.regs().rbx), (0x100_0010, 0x6000));
    assert_eq!(bytes::<8>(&memory, 0x100_0000), *b"kernel!!");
    let info = 0x6000;
    assert_eq!(bytes::<4>(&memory, info), [0x78, 0xc5, 0x6e, 0x33]);
    assert_eq!(bytes::<4>(&memory, info + 12), [1, 0, 0, 0]);
    assert_eq!(bytes::<8>(&memory, info + 24), 0x2_0000_u64.to_le_bytes());
    assert_eq!(bytes::<8>(&memory, info + 32), RSDP.to_le_bytes());
    assert_eq!(bytes::<4>(&memory, info + 48), [7, 0, 0, 0]);
    let modules = u64::from_le_bytes(bytes(&memory, info + 16));
    assert_eq!(bytes::<8>(&memory, modules), 0x3ff_f000_u64.to_le_bytes());
    assert_eq!(bytes::<8>(&memory, modules + 8), 6_u64.to_le_bytes());
    let map = u64::from_le_bytes(bytes(&memory, info + 40));
    assert_eq!(bytes::<8>(&memory, map + 8), 0xa_0000_u64.to_le_bytes());
}

#[test]
fn a_second_boot_finds_zeroes_where_the_kernel_expects_them() {
    let (files, memory) = (Files::new(), ram());
    let kernel = files.file("vmlinux", &vmlinux());
    let mut images = Images::open(&kernel, None, "").expect("opens");
    images.load(&memory, RAM, RSDP, false).expect("loads");
    memory
        .write_slice(&[0xee; 0x2000], GuestAddress(0x100_0008))
        .expect("write");
    images.load(&memory, RAM, RSDP, true).expect("loads again");
    assert_eq!(bytes::<8>(&memory, 0x100_0000), *b"kernel!!");
    assert_eq!(bytes::<0x1ff8>(&memory, 0x100_0008), [0; 0x1ff8]);
    assert_eq!(bytes::<8>(&memory, 0x100_2000), [0xee; 8]);
}

fn refusal(kernel: &[u8]) -> String {
    let (files, memory) = (Files::new(), ram());
    let kernel = files.file("kernel", kernel);
    load(&kernel, None, &memory)
        .expect_err("refused")
        .to_string()
}

#[test]
fn a_file_that_is_no_kernel_is_named_with_what_is_accepted() {
    let message = refusal(b"\x1f\x8b\x08 compressed");
    assert!(message.starts_with("--kernel "), "{message}");
    assert!(
        message
            .contains("neither a bzImage nor an ELF image (it begins like gzip-compressed data)"),
        "{message}"
    );
    assert!(
        message.contains("arch/x86/boot/bzImage or vmlinux"),
        "{message}"
    );
    assert!(refusal(b"").contains("(it is empty)"));
    assert!(refusal(b"#!/bin/sh\n").contains("first bytes are [23, 21, 2f, 62]"));
}

#[test]
fn an_elf_without_pvh_note_says_what_to_build() {
    let mut image = vmlinux();
    image[0x188] = 17;
    assert!(refusal(&image).contains("CONFIG_PVH=y"));
}

/// A small file may have segments of all of memory, thousands of times.
#[test]
fn an_elf_that_takes_longer_than_memory_is_large_is_refused() {
    let mut many = vmlinux();
    many[56] = 65;
    assert!(refusal(&many).contains("65 program headers"));

    let mut beyond = vmlinux();
    beyond[64 + 40..64 + 48].copy_from_slice(&RAM.to_le_bytes());
    let message = refusal(&beyond);
    assert!(
        message.contains("a segment at 0x1000000 ends at 0x5000000, and memory at 0x4000000"),
        "{message}"
    );

    let mut twice = vmlinux();
    twice[56] = 3;
    twice.copy_within(64..120, 176);
    twice[176 + 24..176 + 32].copy_from_slice(&0x100_1000_u64.to_le_bytes());
    let message = refusal(&twice);
    assert!(
        message.contains("segments overlap at 0x1001000"),
        "{message}"
    );

    let mut notes = vmlinux();
    notes[120 + 32..120 + 40].copy_from_slice(&0x1_0001_u64.to_le_bytes());
    assert!(refusal(&notes).contains("65537 bytes of notes"));
}

#[test]
fn a_truncated_image_is_refused() {
    assert!(refusal(&vmlinux()[..0x104]).contains("the file is complete"));
    let mut needs_much = bzimage();
    needs_much[0x260..0x264].copy_from_slice(&0x1000_0000_u32.to_le_bytes());
    assert!(refusal(&needs_much).contains("it needs memory up to 0x11000000"));
}

#[test]
fn an_initramfs_that_does_not_fit_is_refused() {
    let (files, memory) = (Files::new(), ram());
    let kernel = files.file("vmlinux", &vmlinux());
    let path = files.file("initramfs", b"");
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(RAM))
        .expect("sparse file");
    let message = load(&kernel, Some(&path), &memory)
        .expect_err("refused")
        .to_string();
    assert!(
        message.contains("do not fit beside the kernel"),
        "{message}"
    );
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let (files, memory) = (Files::new(), ram());
    let kernel = files.file("vmlinux", &vmlinux());
    let mut images = Images::open(&kernel, None, &"x".repeat(2048)).expect("opens");
    let message = images
        .load(&memory, RAM, RSDP, false)
        .expect_err("refused")
        .to_string();
    assert_eq!(
        message,
        "--cmdline: 2048 bytes are more than this kernel takes (2047); shorten it"
    );
}

#[test]
fn a_missing_file_names_its_option() {
    let message = match Images::open(Path::new("/nonexistent/kernel"), None, "") {
        Err(error) => error.to_string(),
        Ok(_) => panic!("opened"),
    };
    assert!(
        message.starts_with("--kernel /nonexistent/kernel: cannot open the file"),
        "{message}"
    );
}
