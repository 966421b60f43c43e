//! Where a process is: whether two are on one host, and have the same files for their disks.

use crate::machine::claims::Claims;

/// Where the kernel says which of its starts this is. Hosts that were made from one snapshot of a running one
/// say the same.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Of a process: what tells its host from others, what tells the files of its disks from others, and whether it
/// has found them in use, which the other process has then.
pub(super) fn place(claims: &Claims, found_in_use: bool) -> String {
    let host = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let found = match found_in_use {
        true => IN_USE,
        false => FREE,
    };
    format!("{} {} {found}", host.trim(), claims.files())
}

/// How a target has found the disks of its guest, which the source has.
const IN_USE: &str = "in-use";
const FREE: &str = "free";

/// Whether both places are on one host, or on hosts that were made from one snapshot.
pub(super) fn is_same_host(one: &str, other: &str) -> bool {
    let host = |place: &str| place.split(' ').next().unwrap_or_default().to_owned();
    !host(one).is_empty() && host(one) == host(other)
}

/// Whether the locks of the disks tell which of `source` and `target` has the guest, as one of them can have them. Then
/// both have the same files on one host as well, and what one of them writes the other one reads.
pub(super) fn is_told_by_locks(source: &str, target: &str) -> bool {
    let part = |place: &str, index| place.split(' ').nth(index).unwrap_or_default().to_owned();
    let files = part(source, 1);
    let are_same = is_same_host(source, target) && files == part(target, 1);
    // Without disks there is nothing to be found, and nothing to be told.
    are_same && (part(target, 2) == IN_USE || files.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_name() {
        let place = place(&Claims::new(true), false);
        assert!(is_told_by_locks(&place, &place), "{place}");
    }

    #[test]
    fn locks_tell_on_one_host_and_of_the_same_files_only_and_if_they_were_found() {
        for (one, other, host, locks) in [
            ("a 8:1=5 free", "a 8:1=5 in-use", true, true),
            ("a 8:1=5 free", "a 8:1=5 free", true, false),
            ("a 8:1=5 free", "a 8:1=6 in-use", true, false),
            ("a 8:1=5 free", "b 8:1=5 in-use", false, false),
            ("a 8:1=5 free", "a  in-use", true, false),
            ("a  free", "a  free", true, true),
            (" 8:1=5 free", " 8:1=5 in-use", false, false),
            ("a 8:1=5 free", "a 8:1=5", true, false),
            ("", "", false, false),
        ] {
            assert_eq!(is_same_host(one, other), host, "{one:?} {other:?}");
            assert_eq!(is_told_by_locks(one, other), locks, "{one:?} {other:?}");
        }
    }
}
