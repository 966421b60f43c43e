//! One run of nido in front of a guest, from its start to its end.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::given_back::GivenBack;
use super::log::{Line, Log, read_on};
use super::migrations::Journey;
use super::moved::{Moved, Way, outcome_of};
use super::tally::Tally;
use super::threads::Runs;
use super::{Report, control, dirty, huge_pages, pauses, upgrades};
use crate::judge::Judge;
use crate::protocol::{AgentLine, GuestLine};
use crate::scenario::Exchange;
use crate::sys::trace::IoctlCount;
use crate::{pci, sys};

/// How long a broken guest may go on printing why.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long nido may take to let go of a device that the host wants back. The kernel asks every ten
/// seconds.
const TAKING: Duration = Duration::from_secs(15);
/// How long a guest that is to be killed goes on after its checks.
const AMID: Duration = Duration::from_millis(1500);

/// How a run is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The guest leaves.
    ByItself,
    /// nido is killed soon after the guest has carried out its plan.
    Killed,
}

/// A run.
pub(super) struct Session<'a> {
    /// nido.
    pub(super) program: &'a Path,
    /// Its arguments.
    pub(super) arguments: &'a [String],
    /// Directory for logs.
    pub(super) output: &'a Path,
    /// Name of the log of the guest's console.
    pub(super) name: &'a str,
    /// nido's control socket, if it has one.
    pub(super) socket: Option<&'a Path>,
    /// What it is asked after the guest's checks.
    pub(super) control: &'a [Exchange],
    /// Directory of disks and sockets.
    pub(super) scratch: &'a Path,
    /// Where nido's messages go.
    pub(super) messages: &'a Path,
    /// The taps of the guest's network.
    pub(super) taps: &'a [String],
    /// Devices that it has in turn when it migrates.
    pub(super) moving: &'a [String],
    /// Puts addresses into the guest's requests.
    pub(super) substitute: &'a dyn Fn(&str) -> String,
    /// Looks at what the guest has set up, by the name of what to look at, or none.
    pub(super) look: &'a dyn Fn(&str) -> Result<()>,
    /// Longest run.
    pub(super) limit: Duration,
    /// The end.
    pub(super) ending: Ending,
    /// Repeat the guest's console.
    pub(super) show_guest: bool,
}

/// What a run has brought.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Reasons against it.
    pub(super) failures: Vec<String>,
    /// Checks that passed.
    pub(super) passed: usize,
    /// How long it took.
    pub(super) time: Duration,
    /// What the checks that passed have said, and [`COUNTED`] of the agent itself.
    pub(super) details: Vec<(String, String)>,
}

impl Outcome {
    /// What the guest has measured and what was counted: lines of `key=value` words.
    pub(super) fn measures(self) -> Vec<String> {
        let details = self.details.into_iter().map(|(_, detail)| detail);
        details.filter(|detail| detail.contains('=')).collect()
    }
}

/// Name of a detail: what the guest has said of a time in which something was counted, and `
/// ioctls=` and the like with the numbers.
pub(super) const COUNTED: &str = "counted";

/// A request: what follows was measured by a guest of the guest.
pub(crate) const MEASURED: &str = "measured";

/// A request: the agent is to look at what the guest has set up.
pub(crate) const LOOK: &str = "look";

impl Session<'_> {
    /// Runs it, until `judge` has heard everything.
    pub(super) fn run(&self, mut judge: Judge, report: &mut Report<'_>) -> Result<Outcome> {
        let mut log = Log::create(&self.output.join(format!("{}.log", self.name)))?;
        let started = Instant::now();
        let messages = File::create(self.messages)?;
        let mut child = spawn(self.program, self.arguments, messages)?;
        let mut keyboard = child.stdin.take().context("no stdin")?;
        let (sender, mut lines) = mpsc::channel();
        let screen = child.stdout.take().context("no stdout")?;
        let mut reader = read_on(screen, Vec::new(), sender);
        let mut failures = Vec::new();
        let mut answers = 0;
        let mut over = None;
        let mut amid = None;
        let mut details = Vec::new();
        let mut counting = None;
        let mut before = None;
        let mut runs = None;
        let mut taken = Vec::new();
        let mut following = None;
        let mut given_back = GivenBack::default();
        let mut messages = self.messages.to_owned();
        // How often the guest has migrated.
        let mut turns = 0;
        // What the guest has reported since it was saved, if it is to go on from there once more.
        let mut saved: Option<Vec<String>> = None;
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    log.write(&line);
                    judge.line(&line.text);
                    let said = GuestLine::parse(&line.text);
                    if let (Some(since), Some(said)) = (&mut saved, &said) {
                        since.extend(outcome_of(said));
                    }
                    match &said {
                        Some(GuestLine::Request(text)) => {
                            let result = match text.split_once(' ').unwrap_or((text, "")) {
                                ("count", _) => IoctlCount::start(child.id())
                                    .map(|count| counting = Some(count))
                                    .context("ptrace"),
                                (COUNTED, what) => counted(counting.take(), what)
                                    .map(|detail| details.push((COUNTED.to_owned(), detail))),
                                ("tally", _) => {
                                    self.tally(child.id()).map(|tally| before = Some(tally))
                                }
                                ("tallied", what) => self.tally(child.id()).and_then(|tally| {
                                    let before = before.take().context("no tally before")?;
                                    let since = tally.since(&before);
                                    details.push((COUNTED.to_owned(), format!("{what}{since}")));
                                    Ok(())
                                }),
                                ("threads", names) => {
                                    Runs::count(child.id(), names).map(|count| runs = Some(count))
                                }
                                ("asleep", names) => Runs::count(child.id(), names)
                                    .and_then(|count| count.ensure_asleep_since(runs.take())),
                                (MEASURED, what) => {
                                    report(AgentLine::Measure(what.to_owned()));
                                    Ok(())
                                }
                                (LOOK, name) => (self.look)(name),
                                ("refuse", number) => {
                                    refuse(child.id(), number).map(|count| counting = Some(count))
                                }
                                ("huge-pages", device) => {
                                    huge_pages::check(child.id(), &(self.substitute)(device))
                                }
                                ("pauses", rounds) => self.pauses(rounds),
                                ("dirty", words) => {
                                    dirty::follow(&mut following, self.socket, &messages, words)
                                }
                                ("given-back", what) => {
                                    given_back.see(child.id(), self.socket, what)
                                }
                                ("move", how) => match self.go(&mut child, how, &mut turns) {
                                    Err(error) => {
                                        // There may be no guest any more that hears of it.
                                        failures.push(format!("{text}: {error:#}"));
                                        break;
                                    }
                                    Ok((None, said)) => {
                                        details.push((COUNTED.to_owned(), said));
                                        Ok(())
                                    }
                                    Ok((Some(moved), said)) => {
                                        for line in lines.iter() {
                                            log.write(&line);
                                            judge.line(&line.text);
                                        }
                                        // The other nido goes on in the middle of a line.
                                        let begun = reader.join().unwrap_or_default();
                                        let (sender, receiver) = mpsc::channel();
                                        reader = read_on(moved.screen, begun, sender);
                                        (child, keyboard, lines) =
                                            (moved.child, moved.keyboard, receiver);
                                        messages = moved.messages;
                                        details.push((COUNTED.to_owned(), said));
                                        saved = how.contains("twice").then(Vec::new);
                                        Ok(())
                                    }
                                },
                                ("refused", numbers) => refused(counting.take(), numbers),
                                ("take", device) => {
                                    taken.push(Taking::start((self.substitute)(device)));
                                    Ok(())
                                }
                                ("wanted", device) => self.says_wanted(device),
                                ("taken", _) => give_back(taken.drain(..)),
                                _ => self.control(text),
                            };
                            answer(&mut keyboard, result);
                        }
                        Some(GuestLine::Report {
                            check,
                            passed: true,
                            detail,
                            ..
                        }) => details.push((check.clone(), detail.clone())),
                        // A guest that gets no answer says so in its report.
                        Some(GuestLine::Ask(word)) => type_line(&mut keyboard, word),
                        Some(GuestLine::End(_)) if self.ending == Ending::Killed => {
                            amid = Some(Instant::now());
                        }
                        Some(GuestLine::End(_)) if !self.control.is_empty() => {
                            let transcript = self.output.join("control.txt");
                            let socket = self.socket.context("no control socket")?;
                            match control::converse(socket, self.control, &transcript) {
                                Ok(right) => answers += right,
                                Err(error) => {
                                    failures.push(format!("control: {error:#}"));
                                    break;
                                }
                            }
                        }
                        _ => {}
                    }
                    if self.show_guest {
                        report(AgentLine::Guest(line.text));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if amid.is_some_and(|since| since.elapsed() > AMID) {
                break;
            }
            if judge.is_over() && over.is_none() {
                over = Some(Instant::now());
            }
            if over.is_some_and(|since| since.elapsed() > LAST_WORDS) {
                break;
            }
            if started.elapsed() > self.limit {
                failures.push(format!("no end within {} s", self.limit.as_secs()));
                let state = describe(child.id());
                fs::write(self.output.join("hang.txt"), state)?;
                break;
            }
            if sys::interrupted() {
                failures.push("interrupted".to_owned());
                break;
            }
        }
        if amid.is_some() {
            sys::kill(child.id());
        }
        let ended = end(&mut child)?;
        give_back(taken.into_iter())?;
        for line in lines.try_iter() {
            log.write(&line);
            judge.line(&line.text);
        }
        if reader.is_finished()
            && let Ok(rest) = reader.join()
            && !rest.is_empty()
        {
            let text = String::from_utf8_lossy(&rest).into_owned();
            let at = sys::monotonic_ns();
            log.write(&Line {
                at,
                text: text.clone(),
            });
            judge.line(&text);
        }
        let time = started.elapsed();
        let passed = judge.passed() + answers;
        let killed = over.is_some() || !failures.is_empty();
        failures.extend(judge.finish());
        let expected = match self.ending {
            Ending::ByItself => Ended::Code(0),
            Ending::Killed => Ended::Signal(libc::SIGKILL),
        };
        if !killed && ended != expected {
            failures.push(format!("nido ended with {ended}: {}", last_line(&messages)));
        }
        if let Some(reported) = saved.filter(|_| failures.is_empty())
            && let Err(error) = self
                .way()
                .and_then(|way| way.once_more(&reported, self.limit))
        {
            failures.push(format!("once more: {error:#}"));
        }
        Ok(Outcome {
            failures,
            passed,
            time,
            details,
        })
    }

    /// Whether nido has said that the host wants the device back.
    fn says_wanted(&self, device: &str) -> Result<()> {
        let address = (self.substitute)(device);
        let messages = fs::read(self.messages)?;
        let messages = String::from_utf8_lossy(&messages);
        let said = messages
            .lines()
            .any(|line| line.contains(&address) && line.contains("the host wants the device back"));
        ensure!(said, "nido has not said that {address} is wanted back");
        Ok(())
    }

    /// The way of the guest to another nido.
    fn way(&self) -> Result<Way<'_>> {
        Ok(Way {
            program: self.program,
            socket: self.socket.context("no control socket")?,
            scratch: self.scratch,
            messages: self.messages,
        })
    }

    /// Has the guest go on in another nido, if it is to.
    fn go(&self, nido: &mut Child, how: &str, turns: &mut u32) -> Result<(Option<Moved>, String)> {
        let way = self.way()?;
        if let Some(how) = how.strip_prefix("upgrade") {
            return Ok((None, upgrades::go(&way, nido, how.trim())?));
        }
        let Some(how) = how.strip_prefix("migrate") else {
            let (moved, said) = way.go(nido, how.contains("live"))?;
            return Ok((Some(moved), said));
        };
        let mut journey = Journey {
            way: &way,
            output: self.output,
            taps: self.taps,
            moving: self.moving,
            turns,
            substitute: self.substitute,
        };
        journey.go(nido, how.trim())
    }

    fn pauses(&self, rounds: &str) -> Result<()> {
        let socket = self.socket.context("no control socket")?;
        pauses::check(socket, rounds.parse().context("pauses ROUNDS")?)
    }

    fn tally(&self, process: u32) -> Result<Tally> {
        Tally::take(process, self.socket.context("no control socket")?)
    }

    /// Says to nido's control socket what the guest asks for: what is separated by ` & ` at the
    /// same time.
    fn control(&self, text: &str) -> Result<()> {
        let socket = self.socket.context("no control socket")?;
        let requests: Vec<String> = text.split(" & ").map(self.substitute).collect();
        std::thread::scope(|scope| {
            let workers: Vec<_> = requests
                .iter()
                .map(|request| scope.spawn(|| control::request(socket, request)))
                .collect();
            for worker in workers {
                let answer = worker.join().map_err(|_| anyhow!("a worker panicked"))??;
                ensure!(!answer.starts_with("error"), "{}", answer.trim());
            }
            Ok(())
        })
    }
}

/// Starts nido with a terminal of ours and its messages in a file.
pub(super) fn spawn(program: &Path, arguments: &[String], messages: File) -> Result<Child> {
    start(program, command(program, arguments, messages))
}

/// What [`spawn`] starts, for whoever has something to add.
pub(super) fn command(program: &Path, arguments: &[String], messages: File) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(messages)
        .process_group(0);
    sys::die_with_parent(&mut command);
    command
}

/// Starts it.
pub(super) fn start(program: &Path, mut command: Command) -> Result<Child> {
    command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// A device that is being taken from nido: its driver is unbound, which waits until nido has let go
/// of the device.
struct Taking {
    address: String,
    unbinding: JoinHandle<Result<()>>,
}

impl Taking {
    fn start(address: String) -> Self {
        let device = address.clone();
        let unbinding = std::thread::spawn(move || pci::unbind(&device));
        Self { address, unbinding }
    }
}

/// Waits until the devices have been taken, and has the driver have them again.
fn give_back(taken: impl Iterator<Item = Taking>) -> Result<()> {
    for Taking { address, unbinding } in taken {
        let deadline = Instant::now() + TAKING;
        while !unbinding.is_finished() {
            ensure!(
                Instant::now() < deadline,
                "{address} is not given back by nido"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let unbound = unbinding.join().map_err(|_| anyhow!("unbind panicked"))?;
        unbound.with_context(|| address.clone())?;
        let driver = pci::driver(&address);
        ensure!(driver.is_none(), "{address} is driven by {driver:?}");
        pci::bind(&address, "vfio-pci")?;
    }
    Ok(())
}

/// Has nido's ioctls with a number, which is written as in `0x3b8f`, fail from now on.
fn refuse(process: u32, number: &str) -> Result<IoctlCount> {
    let refused = ioctl_number(number)?;
    IoctlCount::start_refusing(process, Some(refused)).context("ptrace")
}

/// No ioctl fails for our sake any more; the ioctls with these numbers were all issued meanwhile.
fn refused(counting: Option<IoctlCount>, numbers: &str) -> Result<()> {
    let counts = counting.context("nothing is refused")?.stop()?;
    for number in numbers.split_whitespace() {
        let count = counts.get(&ioctl_number(number)?).copied();
        ensure!(count.is_some(), "nido has issued no ioctl {number}");
    }
    Ok(())
}

fn ioctl_number(text: &str) -> Result<u64> {
    let digits = text.strip_prefix("0x").context("a number as in 0x3b8f")?;
    Ok(u64::from_str_radix(digits, 16)?)
}

/// Ends the counting of the ioctls of VFIO and of iommufd, which share a type.
fn counted(counting: Option<IoctlCount>, what: &str) -> Result<String> {
    const TYPE: u64 = 0x3B;
    let counts = counting.context("nothing is being counted")?.stop()?;
    let ours = counts
        .iter()
        .filter(|(number, _)| **number >> 8 & 0xFF == TYPE);
    let total: u64 = ours.clone().map(|(_, count)| count).sum();
    let each: String = ours
        .map(|(number, count)| format!(" {number:#x}={count}"))
        .collect();
    Ok(format!("{what} ioctls={total}{each}"))
}

fn answer(keyboard: &mut ChildStdin, result: Result<()>) {
    match result {
        Ok(()) => type_line(keyboard, "ok"),
        Err(error) => {
            let text = format!("error: {error:#}").replace('\n', " ");
            type_line(keyboard, &text.chars().take(200).collect::<String>());
        }
    }
}

pub(super) fn type_line(keyboard: &mut ChildStdin, text: &str) {
    // A guest that reads nothing says so in its report.
    let _ = keyboard.write_all(format!("{text}\n").as_bytes());
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Waits a moment for the child, then kills its group.
fn end(child: &mut Child) -> Result<Ended> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            sys::kill_group(child.id());
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    })
}

/// What the threads of a process that does not end are doing.
fn describe(process: u32) -> String {
    let mut text = String::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
        return text;
    };
    for task in tasks.flatten() {
        for file in ["comm", "stat", "wchan", "syscall"] {
            let content = fs::read_to_string(task.path().join(file)).unwrap_or_default();
            text.push_str(&format!(
                "{} {file}: {}\n",
                task.file_name().to_string_lossy(),
                content.trim()
            ));
        }
    }
    text
}

/// The last line of a file that is not empty.
pub(super) fn last_line(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .to_owned()
}
