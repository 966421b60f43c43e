//! The commands that have the guest go on in another process.

use std::sync::Arc;
use std::time::Duration;

use super::monitor::Monitor;
use super::parser::{Answer, Value};
use super::turns::Long;
use super::workers::Kind;
use crate::cli::{MigrateAsked, parse_migrate};
use crate::event::Event;
use crate::migration;

/// How long a client waits for a migration, which is as long as a slow connection takes for a large
/// memory. The migration goes on without it.
const PATIENCE: Duration = Duration::from_secs(3600);

/// `migrate`: when the guest runs there. Then this process ends.
pub(super) fn leave(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Migration(argument)] = values else {
        return Err("migrate: the argument is missing".to_owned());
    };
    let wish = match parse_migrate(argument).map_err(|error| error.to_string())? {
        MigrateAsked::Help(text) => return Ok(text.into()),
        MigrateAsked::Migrate(wish) => wish,
    };
    let turn = monitor.begin(Long::Migration)?;
    let (here, migrations) = (monitor.here(), Arc::clone(&monitor.migrations));
    let work = move || {
        let _turn = turn;
        migration::leave(&wish, &here, &migrations)
    };
    let pending = monitor.workers.begin(Kind::Migration, work)?;
    Ok(pending.within(PATIENCE).with_event(Event::Quit).into())
}

/// `migrate-status`: at once.
pub(super) fn status(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let text = monitor.migrations.describe();
    let text = text.unwrap_or_else(|| "no migration is under way".to_owned());
    Ok(format!("{text}\n").into())
}

/// `migrate-cancel`: at once.
pub(super) fn cancel(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    Ok(monitor.migrations.cancel()?.into())
}
