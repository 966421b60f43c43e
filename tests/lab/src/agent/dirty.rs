//! Which pages nido says that a guest's devices of the host have written, beside what the guest had them
//! write.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::control;

/// What nido's log says when a round begins.
const ROUND: &str = "dirty-pages: round ";
/// Longest time for a round to begin, besides what it takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request to nido, while the guest has its devices write.
pub(super) struct Following {
    messages: PathBuf,
    /// Rounds that had begun before, in all.
    before: usize,
    rounds: usize,
    /// Pages of first-stage tables.
    tables: BTreeSet<u64>,
    asking: JoinHandle<Result<String>>,
}

/// What the guest asks for: `begin MILLISECONDS ROUNDS`; `next ROUND`, when it has done all of one;
/// `tables BDF ADDRESS`, by which that was translated; and `is A+B;C`, the pages that are expected of each round.
/// First-stage tables may be among them: while a unit keeps dirty bits, it counts as writing what it reads of these.
pub(super) fn follow(
    following: &mut Option<Following>,
    socket: Option<&Path>,
    messages: &Path,
    words: &str,
) -> Result<()> {
    let socket = socket.context("no control socket")?;
    let (word, rest) = words.split_once(' ').context("dirty WORD ...")?;
    if word == "begin" {
        let (time, rounds) = rest.split_once(' ').context("begin MILLISECONDS ROUNDS")?;
        let begun = Following::begin(socket, messages, time, rounds.parse()?)?;
        *following = Some(begun);
        return Ok(());
    }
    let is = following.as_mut().context("nothing is followed")?;
    match word {
        "next" => is.next(rest.parse()?),
        "tables" => {
            let answer = control::ask(socket, &format!("translate {rest}"), "")?;
            is.tables.extend(first_stage(&answer)?);
            Ok(())
        }
        "is" => {
            let taken = following.take().context("nothing is followed")?;
            let tables = taken.tables.clone();
            compare(&taken.answer()?, rest, &tables)
        }
        other => bail!("dirty {other}?"),
    }
}

impl Following {
    fn begin(socket: &Path, messages: &Path, time: &str, rounds: usize) -> Result<Self> {
        let request = format!("dirty-pages for={time},rounds={rounds},of=host-devices");
        let socket = socket.to_owned();
        let following = Self {
            messages: messages.to_owned(),
            before: begun(messages)?,
            rounds,
            tables: BTreeSet::new(),
            asking: thread::spawn(move || control::request(&socket, &request)),
        };
        following.wait_for(1)?;
        Ok(following)
    }

    /// The guest has done all that it does in `round`, which is not over yet; waits for its end.
    fn next(&self, round: usize) -> Result<()> {
        let late = begun(&self.messages)? > self.before + round || self.asking.is_finished();
        ensure!(
            !late,
            "round {round} was over before the guest had done all"
        );
        self.wait_for(round + 1)
    }

    /// Waits for the beginning of a round, or the end of all.
    fn wait_for(&self, round: usize) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            // What was said before the end is in the log then.
            let is_over = self.asking.is_finished();
            if begun(&self.messages)? >= self.before + round || is_over && round > self.rounds {
                return Ok(());
            }
            ensure!(!is_over, "`dirty-pages` has ended before round {round}");
            ensure!(Instant::now() < until, "round {round} does not begin");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn answer(self) -> Result<String> {
        let answer = self.asking.join();
        answer.map_err(|_| anyhow!("a thread panicked"))?
    }
}

/// Rounds that have begun, as the log says.
fn begun(messages: &Path) -> Result<usize> {
    let text = fs::read(messages).with_context(|| messages.display().to_string())?;
    Ok(String::from_utf8_lossy(&text).matches(ROUND).count())
}

/// The pages of the first-stage tables that a translation has read.
fn first_stage(answer: &str) -> Result<BTreeSet<u64>> {
    let lines = answer.lines().map(str::trim_start);
    let entries = lines.filter_map(|line| line.strip_prefix("first stage "));
    let addresses = entries.filter_map(|entry| entry.split_whitespace().nth(1));
    let pages = addresses.map(|address| Ok(number(address.trim_end_matches(':'))? & !0xfff));
    pages.collect()
}

/// Both name the same pages, round by round; the answer may have `tables` besides.
fn compare(answer: &str, expected: &str, tables: &BTreeSet<u64>) -> Result<()> {
    ensure!(!answer.starts_with("error"), "{}", answer.trim());
    let found = rounds(answer)?;
    let expected = expected.split(';').map(|round| {
        let pages = round.split('+').filter(|page| !page.is_empty());
        pages.map(number).collect::<Result<BTreeSet<_>>>()
    });
    let expected = expected.collect::<Result<Vec<_>>>()?;
    ensure!(
        found.len() == expected.len(),
        "{} rounds, not {}: {answer}",
        found.len(),
        expected.len()
    );
    for (round, (found, expected)) in (1..).zip(found.iter().zip(&expected)) {
        let more = found.difference(expected);
        let more = more.filter(|page| !tables.contains(page));
        let more: Vec<_> = more.map(hexadecimal).collect();
        let less: Vec<_> = expected.difference(found).map(hexadecimal).collect();
        ensure!(
            more.is_empty() && less.is_empty(),
            "round {round}: besides {}, without {}",
            more.join(" "),
            less.join(" ")
        );
    }
    Ok(())
}

fn hexadecimal(page: &u64) -> String {
    format!("{page:#x}")
}

/// The pages of each round.
fn rounds(answer: &str) -> Result<Vec<BTreeSet<u64>>> {
    let mut rounds = Vec::new();
    for line in answer.lines() {
        if line.starts_with("round ") {
            rounds.push(BTreeSet::new());
        } else if line.starts_with("0x") {
            let (start, count) = line.split_once(' ').context("ADDRESS COUNT")?;
            let (start, count) = (number(start)?, count.parse::<u64>()?);
            let round = rounds.last_mut().context("no round")?;
            round.extend((0..count).map(|page| start + page * 4096));
        } else {
            ensure!(line.starts_with("host-devices: "), "{line}");
        }
    }
    Ok(rounds)
}

fn number(text: &str) -> Result<u64> {
    let digits = text.strip_prefix("0x").context("0x...")?;
    Ok(u64::from_str_radix(digits, 16)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str =
        "round 1\nhost-devices: 3 pages\n0x1000 2\n0x8000 1\nround 2\nhost-devices: 0 pages\n";

    #[test]
    fn sets_are_equal_or_the_difference_is_told() {
        let none = BTreeSet::new();
        compare(ANSWER, "0x1000+0x2000+0x8000;", &none).unwrap();
        let more = compare(ANSWER, "0x1000+0x8000;", &none).unwrap_err();
        assert_eq!(more.to_string(), "round 1: besides 0x2000, without ");
        compare(ANSWER, "0x1000+0x8000;", &[0x2000].into()).unwrap();
        let less = compare(ANSWER, "0x1000+0x2000+0x8000;0x9000", &none).unwrap_err();
        assert_eq!(less.to_string(), "round 2: besides , without 0x9000");
        assert!(compare(ANSWER, "0x1000+0x2000+0x8000", &none).is_err());
        assert!(compare("error: no\n", ";", &none).is_err());
        assert!(compare("round 1\nand 6 more\n", "", &none).is_err());
    }

    #[test]
    fn tables_are_found_in_a_translation() {
        let answer = "00:06.0 address 0x1230000: first-stage 0xff3000, 4 levels\n  first stage 4              0x000000ff3000: 0xff2027 = P\n  \
                      first stage 1              0x000000ff4180: 0x1ed2067 = P\n  second stage 1   0x000000ff5180: 0x1\n";
        assert_eq!(first_stage(answer).unwrap(), [0xff_3000, 0xff_4000].into());
    }
}
