//! One run of nido in front of a guest.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::disks::Disks;
use super::invocation::{Invocation, Surroundings, quoted};
use super::log::{Log, read_lines};
use super::tap::Tap;
use super::{Report, Task, control, echo};
use crate::judge::Judge;
use crate::protocol::{AgentLine, GuestLine};
use crate::scenario::Kernel;
use crate::sys;

/// Network of the tap; documentation addresses (RFC 5737), so that no real network is meant.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PREFIX: u8 = 24;
/// How long a broken guest may go on printing why.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What a guest has besides its kernel, for the time of a run.
struct Environment {
    disks: Disks,
    tap: String,
    port: u16,
    _tap: Tap,
}

impl Environment {
    fn create(task: &Task) -> Result<Self> {
        let disks = Disks::create(&task.scratch)?;
        let tap = format!("nido{}", std::process::id() % 100_000);
        let device =
            Tap::new(&tap, HOST, PREFIX).with_context(|| format!("cannot make the tap {tap}"))?;
        let port = echo::serve(HOST, 0).context("echo server")?;
        Ok(Self {
            disks,
            tap,
            port,
            _tap: device,
        })
    }

    fn surroundings(&self) -> Surroundings {
        let mut arguments = Vec::new();
        for disk in &self.disks.paths {
            arguments.extend(["--disk".to_owned(), format!("path={}", disk.display())]);
        }
        arguments.extend(["--net".to_owned(), format!("tap={}", self.tap)]);
        let command_line = format!(
            "lab.disk={} lab.net={GUEST}/{PREFIX},{HOST}:{}",
            self.disks.hash, self.port
        );
        Surroundings {
            arguments,
            command_line,
        }
    }
}

/// Runs the scenario; every reason against it is reported, then [`AgentLine::Done`].
pub fn run(task: &Task, report: &mut Report<'_>) -> Result<()> {
    let scenario = &task.scenario;
    fs::create_dir_all(&task.output)?;
    let linux = scenario.kernel != Kernel::Payload;
    let environment = if linux {
        Some(Environment::create(task)?)
    } else {
        None
    };
    let program = task.files.join("nido");
    let surroundings = environment
        .as_ref()
        .map(Environment::surroundings)
        .unwrap_or_default();
    let Invocation {
        mut arguments,
        plan,
    } = Invocation::new(task, &surroundings, false);
    let socket = task.scratch.join("control.sock");
    if !scenario.control.is_empty() {
        arguments.extend(["--control".to_owned(), format!("path={}", socket.display())]);
    }
    fs::write(
        task.output.join("command.txt"),
        quoted(&program, &arguments) + "\n",
    )?;

    let mut log = Log::create(&task.output.join("guest.log"))?;
    let messages = File::create(task.output.join("nido.log"))?;
    let mut command = Command::new(&program);
    command
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(messages)
        .process_group(0);
    sys::die_with_parent(&mut command);
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut keyboard = child.stdin.take().context("no stdin")?;
    let (sender, lines) = mpsc::channel();
    read_lines(child.stdout.take().context("no stdout")?, sender);

    let mut judge = Judge::new(&plan, scenario.faults)?;
    if !linux {
        judge = judge.without_ends();
    }
    let mut failures = Vec::new();
    let mut answers = 0;
    let mut over = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                log.write(&line);
                judge.line(&line.text);
                if let Some(GuestLine::Ask(word)) = GuestLine::parse(&line.text) {
                    // A guest that gets no answer says so in its report.
                    let _ = keyboard.write_all(format!("{word}\n").as_bytes());
                }
                if !scenario.control.is_empty()
                    && let Some(GuestLine::End(_)) = GuestLine::parse(&line.text)
                {
                    let transcript = task.output.join("control.txt");
                    match control::converse(&socket, scenario.control, &transcript) {
                        Ok(right) => answers += right,
                        Err(error) => {
                            failures.push(format!("control: {error:#}"));
                            break;
                        }
                    }
                }
                if task.show_guest {
                    report(AgentLine::Guest(line.text));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if judge.is_over() && over.is_none() {
            over = Some(Instant::now());
        }
        if over.is_some_and(|since| since.elapsed() > LAST_WORDS) {
            break;
        }
        if started.elapsed() > scenario.limit {
            failures.push(format!("no end within {} s", scenario.limit.as_secs()));
            let state = describe(child.id());
            fs::write(task.output.join("hang.txt"), state)?;
            break;
        }
        if sys::interrupted() {
            failures.push("interrupted".to_owned());
            break;
        }
    }
    let ended = end(&mut child)?;
    for line in lines.try_iter() {
        log.write(&line);
        judge.line(&line.text);
    }
    let milliseconds = u64::try_from(started.elapsed().as_millis())?;
    let passed = judge.passed() + answers;
    let killed = over.is_some() || !failures.is_empty();
    failures.extend(judge.finish());
    if !killed && ended != Ended::Code(0) {
        failures.push(format!(
            "nido ended with {ended}: {}",
            last_line(&task.output.join("nido.log"))
        ));
    }
    if let Some(environment) = &environment
        && failures.is_empty()
        && plan.contains("disk")
        && let Some(reason) = environment.disks.verify()?
    {
        failures.push(reason);
    }
    for failure in failures {
        report(AgentLine::Failure(failure));
    }
    report(AgentLine::Done {
        milliseconds,
        passed,
    });
    Ok(())
}

/// Runs the scenario's guest with a shell on this process's terminal.
pub fn interact(task: &Task, terminal: Option<File>) -> Result<i32> {
    let environment = Environment::create(task)?;
    let mut command = Command::new(task.files.join("nido"));
    command.args(Invocation::new(task, &environment.surroundings(), true).arguments);
    if let Some(terminal) = terminal {
        command
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal);
        sys::own_terminal(&mut command);
    }
    sys::die_with_parent(&mut command);
    let status = command.spawn().context("cannot start nido")?.wait()?;
    Ok(status.code().unwrap_or(1))
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
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + Duration::from_secs(2);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            sys::kill_group(child.id(), libc::SIGKILL);
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

fn last_line(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .to_owned()
}
