//! What a target does with the options that it is sent, before any machine is made.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;

use super::*;
use crate::cli::Request;
use crate::cli::testing::request;
use crate::migration::testing::{LONG, frame, hello_frame, saying};
use crate::socket::scratch::Scratch;

/// What a target says on being sent `options`, to the source and to its user.
fn refused(options: &[&str]) -> (String, String) {
    let json = serde_json::json!({
        "writer": "w", "options": options, "memory": 512 << 20,
    });
    let hello = frame(
        0x01,
        &[b"nidomove\x01\0\0\0", json.to_string().as_bytes()].concat(),
    );
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let from = Endpoint::Unix(path.clone());
    let waiting = thread::spawn(move || {
        let Ok(Request::Incoming { incoming, .. }) = request("--incoming unix:/s") else {
            panic!("no command line");
        };
        let machine = |options: &[String]| Ok(incoming.config(options)?);
        wait(&from, machine, &Places::default()).map(drop)
    });
    let mut source = loop {
        match UnixStream::connect(&path) {
            Ok(source) => break source,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    };
    source.set_read_timeout(Some(LONG)).expect("not zero");
    source.write_all(&hello).expect("taken");
    let mut answer = Vec::new();
    source.read_to_end(&mut answer).expect("an answer");
    drop(source);
    assert_eq!(answer.first(), Some(&0x82), "REFUSED");
    let there = String::from_utf8(answer.split_off(12)).expect("text");
    // After what is no HELLO it waits for the next.
    assert!(!there.contains("not what a nido sends"), "{there}");
    let error = waiting.join().expect("no panic").expect_err("refused");
    (there, format!("{error:#}"))
}

#[test]
fn a_machine_that_no_nido_could_send_is_refused_before_anything_of_it_is_opened() {
    let iommufd = "--object=iommufd,id=i";
    let device = |from| ["--device=vfio-pci,iommufd=i,", from].concat();
    for (options, named, why) in [
        (
            &["--object=iommufd,id=i,fd=3"] as &[&str],
            "--object iommufd,id=i",
            "whoever starts",
        ),
        (
            &["--object=iommufd,id=i,path=/dev/sda"],
            "--object iommufd,id=i",
            "whoever starts",
        ),
        (
            &[iommufd, &device("fd=4")],
            "--device vfio-pci,fd=4",
            "give it a device of this host",
        ),
        (
            &[iommufd, &device("host=0000:01:00.0")],
            "--device vfio-pci,host=0000:01:00.0",
            "give it a device of this host",
        ),
        (
            &["--disk=vhost-user=/s"],
            "--disk vhost-user=/s",
            "cannot be moved",
        ),
        (
            &["--net=vhost-user=/s"],
            "--net vhost-user=/s",
            "cannot be moved",
        ),
    ] {
        let (there, here) = refused(&[&["--kernel=/k"], options].concat());
        for text in [there, here] {
            assert!(text.contains(named), "{text}");
            assert!(text.contains(why), "{text}");
        }
    }
}

#[test]
fn what_a_source_says_is_neither_obeyed_by_a_terminal_nor_without_end() {
    let hostile = "\u{1b}]0;owned\u{7}\u{9b}2J\r\n";
    let long = "x".repeat(100_000);
    for options in [
        [&format!("--kernel=/k{hostile}") as &str, "--memory=1G"],
        [hostile, "--kernel=/k"],
        [&format!("--{hostile}"), "--kernel=/k"],
        ["--kernel=/k", &format!("--net=tap=t,mac={hostile}")],
        ["--kernel=/k", &format!("--device={hostile}{long}")],
        ["--kernel=/k", &format!("--cmdline={hostile}{long}")],
    ] {
        let (there, here) = refused(&options);
        for text in [there, here] {
            assert!(!text.contains(char::is_control), "{text:?}");
            // Each character of 4096 bytes may be one of several when it is shown.
            assert!(text.len() < 5000, "{} bytes", text.len());
        }
    }
}

#[test]
fn a_target_that_is_to_end_does_not_take_the_guest_with_it() {
    for (end, answer) in [(Some(Event::Quit), 0x85), (None, 0x86)] {
        let (link, mut source) = saying(&[hello_frame(), frame(0x07, b"")].concat());
        let (receiver, _) = Receiver::accept(link, LONG).expect("a guest");
        let mut arrival = Arrival::of(receiver);
        let wanted = end.is_none();
        let taken = arrival.take_over(&Claims::new(false), || end);
        assert_eq!(arrival.told(taken).is_ok(), wanted);
        drop(arrival);
        let mut answers = Vec::new();
        source.read_to_end(&mut answers).expect("answers");
        assert_eq!(answers.first(), Some(&0x84), "READY");
        assert_eq!(answers.get(12), Some(&answer));
    }
}
