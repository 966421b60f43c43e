//! Where a process is: whether two are on one host, and have the same files for their disks.

use crate::machine::claims::Claims;

/// Where the kernel says which of its starts this is: no two are alike.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Of a process: what tells its host from others, then what tells the files of its disks from others.
pub(super) fn place(claims: &Claims) -> String {
    let host = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    format!("{} {}", host.trim(), claims.files())
}

/// Whether both places are on one host, so that what one process writes to a file the other one reads.
pub(super) fn is_same_host(one: &str, other: &str) -> bool {
    let host = |place: &str| place.split(' ').next().unwrap_or_default().to_owned();
    !host(one).is_empty() && host(one) == host(other)
}

/// Whether the locks of the disks tell which of both has the guest: one of them can have them.
pub(super) fn is_told_by_locks(one: &str, other: &str) -> bool {
    is_same_host(one, other) && one == other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_name() {
        let place = place(&Claims::new(true));
        assert!(is_same_host(&place, &place), "{place}");
        assert!(is_told_by_locks(&place, &place));
    }

    #[test]
    fn locks_tell_on_one_host_and_of_the_same_files_only() {
        for (one, other, host, locks) in [
            ("a 8:1=5", "a 8:1=5", true, true),
            ("a 8:1=5", "a 8:1=6", true, false),
            ("a 8:1=5", "b 8:1=5", false, false),
            ("a 8:1=5", "a ", true, false),
            (" 8:1=5", " 8:1=5", false, false),
            ("", "", false, false),
        ] {
            assert_eq!(is_same_host(one, other), host, "{one:?} {other:?}");
            assert_eq!(is_told_by_locks(one, other), locks, "{one:?} {other:?}");
        }
    }
}
