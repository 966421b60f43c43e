//! The nested benchmark in level 1: maps and direct I/O of level 3 with nested tables, with
//! shadowed tables, and with no unit.

use anyhow::Result;

use super::bench;
use super::host::Devices;
use super::invocation::Invocation;
use super::run::{Environment, session};
use super::session::Ending;
use super::{Report, Task};
use crate::protocol::AgentLine;
use crate::scenario::Scenario;

/// Has level 2 measure its guests in turn, `rounds` times each; what it measures is reported as it
/// comes.
pub fn run(task: Task, rounds: u32, report: &mut Report<'_>) -> Result<()> {
    let scenario = Scenario {
        limit: task.scenario.limit * rounds,
        ..task.scenario
    };
    let task = Task { scenario, ..task };
    let environment = Environment::create(&task)?;
    let devices = Devices::prepare(&scenario.host)?;
    let plan = scenario.plan.replace("{rounds}", &rounds.to_string());
    let invocation = Invocation::with_plan(&task, &environment.surroundings(), false, &plan);
    let outcome = session(&task, &devices, invocation, Ending::ByItself, None, report)?;
    for failure in outcome.failures {
        report(AgentLine::Failure(failure));
    }
    bench::done(report);
    Ok(())
}
