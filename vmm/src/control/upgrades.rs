//! The command that has another nido take the place of this one.

use std::sync::Arc;

use super::monitor::Monitor;
use super::parser::{Answer, Value};
use super::turns::Long;
use super::workers::Kind;
use crate::cli::{UpgradeAsked, parse_upgrade};
use crate::event::Event;
use crate::upgrade;

/// The name of it.
pub(super) const UPGRADE: &str = "upgrade";

/// `upgrade`: when the guest runs in the other one. Then this process makes room.
pub(super) fn replace(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Upgrade(argument)] = values else {
        return Err("upgrade: the argument is missing".to_owned());
    };
    let path = match parse_upgrade(argument).map_err(|error| error.to_string())? {
        UpgradeAsked::Help(text) => return Ok(text.into()),
        UpgradeAsked::Upgrade(path) => path,
    };
    let turn = monitor.begin(Long::Upgrade)?;
    let (here, upgrades) = (monitor.here(), Arc::clone(&monitor.upgrades));
    let started = monitor.started;
    let work = move || {
        let _turn = turn;
        upgrade::replace(&path, &here, &upgrades, started)
    };
    let pending = monitor.workers.begin(Kind::Upgrade, work)?;
    Ok(pending.with_event(Event::Quit).into())
}

/// Why a client may not ask for this, if that is so. Others than the owner may have been let in to look at the
/// machine, or to end it; what runs as its owner is the owner's to say.
pub(super) fn refusal(request: &str, is_owner: impl FnOnce() -> bool) -> Option<String> {
    let asks = request.split_whitespace().next() == Some(UPGRADE);
    (asks && !is_owner()).then(|| {
        "upgrade runs a program as the user that nido runs as: only that user, or root, may ask for it"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_else_has_no_program_run_and_may_ask_for_all_else() {
        for (request, is_owner, refused) in [
            ("upgrade exec=/n", false, true),
            ("  upgrade exec=/n", false, true),
            ("upgrade", false, true),
            ("upgrade exec=/n", true, false),
            ("status", false, false),
            ("", false, false),
        ] {
            assert_eq!(
                refusal(request, || is_owner).is_some(),
                refused,
                "{request}"
            );
        }
    }
}
