//! Writes initramfs archives (cpio "newc",
//! Documentation/driver-api/early-userspace/buffer-format.rst of Linux).

use std::io::{self, Write};

/// An archive being written.
pub struct Archive<W> {
    output: W,
    written: usize,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl<W: Write> Archive<W> {
    /// Starts an archive that has `/dev/console`, which the kernel opens for init.
    pub fn new(output: W) -> io::Result<Self> {
        let mut archive = Self {
            output,
            written: 0,
            inode: 1,
        };
        archive.directory("dev")?;
        archive.entry("dev/console", CHARACTER_DEVICE, &[], (5, 1))?;
        Ok(archive)
    }

    /// Adds a directory; its parents must be there.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, &[], (0, 0))
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | mode, content, (0, 0))
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK, target.as_bytes(), (0, 0))
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[], (0, 0))?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        content: &[u8],
        device: (u32, u32),
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{path} is too long")))?;
        let name_size = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.inode += 1;
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.output.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 4][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_header_is_110_bytes() {
        let mut archive = Archive::new(Vec::new()).unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let init = text.find("init\0").unwrap();
        assert_eq!(&text[init - 110..init - 104], "070701");
        // Mode, and the size of the content.
        assert_eq!(&text[init - 96..init - 88], "000081ED");
        assert_eq!(&text[init - 56..init - 48], "00000005");
        assert_eq!((init + 5).next_multiple_of(4), text.find("hello").unwrap());
        assert!(text.contains("TRAILER!!!"));
    }
}
