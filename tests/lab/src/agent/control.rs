//! The client of nido's control socket, which asks what a scenario wants to know of a running
//! guest.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::scenario::{Exchange, NO};

/// Time for each answer, on a machine that has more to do. A guest takes its time to let go of a
/// device.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends the requests and checks the answers; returns how many were right. What was said is in
/// `transcript`, however it ends.
pub(super) fn converse(socket: &Path, exchanges: &[Exchange], transcript: &Path) -> Result<usize> {
    let mut said = String::new();
    let result = talk(socket, exchanges, &mut said);
    fs::write(transcript, said).with_context(|| transcript.display().to_string())?;
    result
}

fn talk(socket: &Path, exchanges: &[Exchange], said: &mut String) -> Result<usize> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    for exchange in exchanges {
        let request = exchange.request;
        said.push_str(&format!("> {request}\n"));
        let answer = stream
            .write_all(format!("{request}\n").as_bytes())
            .and_then(|()| receive(&mut answers))
            .with_context(|| format!("`{request}` has no answer"))?;
        said.push_str(&answer);
        judge(exchange, &answer).with_context(|| format!("`{request}`"))?;
    }
    Ok(exchanges.len())
}

/// One request; the answer may be an error.
pub(super) fn request(socket: &Path, text: &str) -> Result<String> {
    request_within(socket, text, PATIENCE)
}

/// The same, with a limit for each part of the answer.
pub(super) fn request_within(socket: &Path, text: &str, patience: Duration) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(format!("{text}\n").as_bytes())?;
    Ok(receive(&mut BufReader::new(stream))?)
}

/// One request, whose answer begins so.
pub(super) fn ask(socket: &Path, text: &str, begin: &str) -> Result<String> {
    let answer = request(socket, text)?;
    ensure!(answer.starts_with(begin), "`{text}`: {}", answer.trim());
    Ok(answer)
}

/// The lines up to the empty one, which ends an answer.
fn receive(stream: &mut impl BufRead) -> std::io::Result<String> {
    let mut answer = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\n" {
            return Ok(answer);
        }
        answer.push_str(&line);
    }
}

fn judge(exchange: &Exchange, answer: &str) -> Result<()> {
    let mut firsts = exchange.line_with.iter().filter_map(|words| words.first());
    let refusal = firsts.any(|word| word.starts_with("error: "));
    match (answer.strip_prefix("error: "), refusal) {
        (Some(problem), false) => bail!("{}", problem.trim()),
        (None, true) => bail!("it was not refused"),
        _ => {}
    }
    for words in exchange.line_with {
        let (unwanted, words) = match words.split_first() {
            Some((&NO, words)) => (true, words),
            _ => (false, *words),
        };
        let line = answer
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        let named = words.join("' and '");
        match line {
            Some(line) if unwanted => bail!("a line with '{named}': {line}"),
            None if !unwanted => bail!("no line with '{named}'"),
            _ => {}
        }
    }
    for name in exchange.positive {
        let value = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("no counter {name}"))?;
        let value: u64 = value.trim().parse().context(*name)?;
        ensure!(value > 0, "{name} is 0");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXCHANGE: Exchange = Exchange {
        request: "stats",
        line_with: &[&["00:02.0", "first"]],
        positive: &["reads"],
    };

    #[test]
    fn an_answer_needs_all_words_in_one_line_and_counters_above_zero() {
        judge(&EXCHANGE, "00:02.0 first-stage\nreads: 4\n").unwrap();
        assert!(judge(&EXCHANGE, "00:02.0 second\n00:03.0 first\nreads: 4\n").is_err());
        assert!(judge(&EXCHANGE, "00:02.0 first-stage\nreads: 0\n").is_err());
        assert!(judge(&EXCHANGE, "00:02.0 first-stage\nother_reads: 4\n").is_err());
        assert!(judge(&EXCHANGE, "error: 00:02.0 first\nreads: 4\n").is_err());
    }

    #[test]
    fn a_refusal_is_an_answer_if_it_is_what_is_wanted() {
        let exchange = Exchange {
            request: "pause",
            line_with: &[&["error: it cannot", "rp0"]],
            positive: &[],
        };
        judge(&exchange, "error: it cannot be, for rp0\n").unwrap();
        assert!(judge(&exchange, "error: it cannot be, for rp1\n").is_err());
        assert!(judge(&exchange, "it is error: it cannot be, for rp0\n").is_err());
    }

    #[test]
    fn an_answer_has_no_line_with_all_words_that_are_not_wanted() {
        let exchange = Exchange {
            request: "assigned",
            line_with: &[&[NO, "01:00.0", "nested"]],
            positive: &[],
        };
        judge(&exchange, "00:01.0 nested\n01:00.0 blocked\n").unwrap();
        assert!(judge(&exchange, "01:00.0 edu: nested\n").is_err());
    }

    #[test]
    fn an_answer_ends_with_an_empty_line() {
        let mut stream = "a\nb\n\nc\n".as_bytes();
        assert_eq!(receive(&mut stream).unwrap(), "a\nb\n");
        assert!(receive(&mut stream).is_err());
    }
}
