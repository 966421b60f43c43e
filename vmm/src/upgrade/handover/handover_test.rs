//! Handovers that are whole, and others.

use std::io::{Seek as _, Write as _};

use vmm_sys_util::tempfile::TempFile;

use super::*;

fn some(roles: Vec<Role>) -> Handover {
    Handover {
        writer: "nido 1.2.3".to_owned(),
        verbosity: 2,
        uptime: 77,
        control: Some(("/run/a,b".into(), 8, 9)),
        terminal: None,
        roles,
    }
}

/// With a header of `version` and `length`, if they are not to be right.
fn framed(json: &str, version: u32, length: Option<u32>) -> Vec<u8> {
    let mut bytes = b"nidoover".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(
        length
            .unwrap_or(u32::try_from(json.len()).expect("short"))
            .to_le_bytes(),
    );
    bytes.extend(json.as_bytes());
    bytes
}

const JSON: &str = r#"{"writer":"nido 1.2.3","verbosity":2,"uptime":77,"control":["/run/a,b",8,9],"terminal":null,"roles":["memory",{"disk":"/d"},{"tap":["t",3]}]}"#;

#[test]
fn a_handover_is_written_in_the_way_that_other_versions_read() {
    let roles = vec![
        Role::Memory,
        Role::Disk("/d".into()),
        Role::Tap("t".into(), 3),
    ];
    let bytes = framed(JSON, 1, None);
    assert_eq!(some(roles).encode().expect("short"), bytes);
}

#[test]
fn more_files_than_go_together_arrive_in_their_order_and_are_the_same_files() {
    let (one, other) = UnixStream::pair().expect("sockets");
    let files: Vec<File> = (0..150_u64)
        .map(|number| {
            let mut file = TempFile::new().expect("a file").into_file();
            file.write_all(&number.to_le_bytes()).expect("room");
            file
        })
        .collect();
    let roles: Vec<_> = (0..150)
        .map(|number| Role::Tap("t".into(), number))
        .collect();
    let sent = some(roles);
    sent.send(&one, &files).expect("sent");
    let (received, given) = Handover::receive(&other).expect("received");
    assert_eq!(received, sent);
    assert_eq!(given.len(), 150);
    for ((role, mut file), number) in given.into_iter().zip(0_u16..) {
        assert_eq!(role, Role::Tap("t".into(), number));
        // The place in the file is the open file's, not the descriptor's.
        assert_eq!(file.stream_position().expect("a file"), 8);
        file.rewind().expect("a file");
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).expect("what was written");
        assert_eq!(u64::from_le_bytes(bytes), u64::from(number));
    }
}

#[test]
fn what_ends_early_is_of_another_version_or_says_what_nobody_knows_is_refused_with_the_reason() {
    let whole = framed(JSON, 1, None);
    for length in 0..whole.len() {
        let part = whole.get(..length).expect("shorter");
        Handover::decode(part).expect_err("too short");
    }
    for (bytes, why) in [
        (
            framed(JSON, 2, None),
            "version 2 of handovers, where this nido has 1",
        ),
        (framed(JSON, 1, Some(u32::MAX)), "too long"),
        (framed(JSON, 1, Some(900)), "ends after"),
        (b"nidomove\x01\0\0\0\0\0\0\0".to_vec(), "no handover"),
        (
            framed(&JSON.replace("memory", "teapot"), 1, None),
            "unknown variant `teapot`",
        ),
        (
            framed(&JSON.replace("uptime", "downtime"), 1, None),
            "unknown field `downtime`",
        ),
        (framed("{}", 1, None), "missing field"),
    ] {
        let error = Handover::decode(bytes.as_slice()).expect_err(why);
        let text = format!("{error:#}");
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn a_handover_whose_files_do_not_come_ends_with_the_other_side() {
    let (one, other) = UnixStream::pair().expect("sockets");
    let sent = some(vec![Role::Memory, Role::Kernel]);
    let file = TempFile::new().expect("a file").into_file();
    sent.send(&one, &[file]).expect("sent");
    drop(one);
    let error = Handover::receive(&other).expect_err("one is missing");
    assert!(
        format!("{error:#}").contains("the files of the handover"),
        "{error:#}"
    );
}
