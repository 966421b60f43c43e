//! Readers that do not read, and that do.

use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::OwnedFd;

use super::*;

fn lines() -> (&'static Lines, PipeReader) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let lines = Box::leak(Box::new(Lines::new()));
    let writer = File::from(OwnedFd::from(writer));
    lines.start(writer).expect("a thread");
    (lines, reader)
}

/// It never returned while lines were written by those who have them.
#[test]
fn a_pipe_that_nobody_reads_holds_up_nobody() {
    let (lines, reader) = lines();
    let most = 20_000;
    for number in 0..most {
        lines.push(format!("line {number} of many {:1000}\n", ""));
    }
    assert!(!lines.flush(), "a pipe does not hold what waits");
    for _ in 0..1000 {
        lines.push("never kept\n".to_owned());
    }

    let (mut known, mut lost) = (0_u64, 0);
    let mut last = None;
    let reading = thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            let line = line.expect("text");
            if line == "the end" {
                break;
            }
            let complaint = line.strip_prefix("nido: warning: ");
            match complaint.and_then(|rest| rest.split_once(" messages were lost")) {
                Some((number, _)) => lost += number.parse::<u64>().expect("a number"),
                None => {
                    let number = line.split(' ').nth(1).expect("a number");
                    let number = Some(number.parse::<u64>().expect("a number"));
                    assert!(number > last, "in order");
                    last = number;
                    known += 1;
                }
            }
        }
        (known, lost)
    });
    while !lines.flush() {}
    lines.push("the end\n".to_owned());
    let (known, lost) = reading.join().expect("no panic");
    assert!(known >= 256 && lost >= 1000, "{known} and {lost}");
    assert_eq!(known + lost, most + 1000);
}

#[test]
fn what_was_lost_is_told_before_what_comes_later() {
    let (lines, reader) = lines();
    // More than the pipe holds keeps the thread busy.
    lines.push("x".repeat(1 << 20) + "\n");
    while !lines.waiting.lock().busy {
        thread::yield_now();
    }
    for _ in 0..MOST + 7 {
        lines.push("kept or lost\n".to_owned());
    }
    let mut reader = BufReader::new(reader)
        .lines()
        .map(|line| line.expect("text"));
    assert_eq!(reader.next().map(|line| line.len()), Some(1 << 20));
    assert_eq!(
        reader
            .by_ref()
            .take(MOST)
            .filter(|line| line == "kept or lost")
            .count(),
        MOST
    );
    assert_eq!(
        reader.next().as_deref(),
        Some("nido: warning: 7 messages were lost, as nobody read them")
    );
    lines.push("later\n".to_owned());
    assert_eq!(reader.next().as_deref(), Some("later"));
}

#[test]
fn what_was_said_before_the_end_is_written_by_then() {
    let (lines, reader) = lines();
    for number in 0..100 {
        lines.push(format!("{number}\n"));
    }
    while !lines.flush() {}
    let mut reader = BufReader::new(reader).lines();
    for number in 0..100 {
        let line = reader.next().expect("a line").expect("text");
        assert_eq!(line, number.to_string());
    }
}
