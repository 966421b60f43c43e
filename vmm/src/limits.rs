//! Limits of this process (`getrlimit`): on memory that is locked and on open files.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Bytes that this process may lock; `None` if there is no limit.
pub(crate) fn lock_limit() -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (limit != RLIM_INFINITY).then_some(limit)
}

/// Lets this process have as many files open as the host allows it at all. Each interrupt vector of an
/// assigned device takes two, and it can have 2048 of them; each queue that vhost serves takes eight.
/// The usual limit of 1024 is for programs that use select(2), which nido does not.
pub(crate) fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        log::debug!("the limit on open files stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_can_be_open_as_the_host_allows() {
        raise_file_limit();
        let (limit, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!(limit, most);
    }
}
