//! Snapshots that replace one another, and directories that are not believed.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use state::{MemoryFile, Sections};
use vmm_sys_util::tempdir::TempDir;

use super::*;

fn directory() -> TempDir {
    let directory = TempDir::new_with_prefix("/tmp/nido-snapshot-").expect("a directory");
    fs::set_permissions(directory.as_path(), fs::Permissions::from_mode(0o700)).expect("mode");
    directory
}

fn state(memory: &str, writer: &str) -> MachineState {
    MachineState {
        writer: writer.to_owned(),
        memory: MemoryFile {
            file: memory.to_owned(),
            bytes: 3,
        },
        options: Vec::new(),
        sections: Sections::default(),
    }
}

fn write(path: &Path, writer: &str) {
    let writing = Writing::begin(path).expect("a directory");
    let mut memory = writing.memory().expect("a file");
    memory.file.write_all(writer.as_bytes()).expect("room");
    let state = state::encode(&state(memory.name(), writer)).expect("small");
    writing.finish(&state, memory, || Ok(())).expect("written");
}

fn contents(path: &Path) -> (String, String) {
    let (state, memory) = open(path).expect("a snapshot");
    (state.writer, io::read_to_string(memory).expect("memory"))
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    names
}

fn refusal(path: &Path) -> String {
    format!("{:#}", open(path).expect_err("no snapshot"))
}

#[test]
fn a_snapshot_replaces_the_one_before_and_leaves_nothing_else() {
    let parent = directory();
    let path = parent.as_path().join("new");
    for writer in ["one", "two"] {
        write(&path, writer);
        assert_eq!(contents(&path), (writer.to_owned(), writer.to_owned()));
        assert_eq!(names(&path).len(), 2, "{:?}", names(&path));
    }
    let mode = fs::metadata(&path).expect("a directory").mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn one_that_is_given_up_leaves_the_old_one_whole() {
    let directory = directory();
    let path = directory.as_path();
    write(path, "old");
    let writing = Writing::begin(path).expect("a directory");
    let mut memory = writing.memory().expect("a file");
    memory.file.write_all(b"new").expect("room");
    drop(memory);
    assert_eq!(contents(path), ("old".to_owned(), "old".to_owned()));
    assert_eq!(names(path).len(), 2);
}

#[test]
fn what_a_process_that_was_killed_has_left_is_gone_before_the_next_one_writes() {
    let directory = directory();
    let path = directory.as_path();
    write(path, "old");
    fs::write(path.join("memory.7"), "half").expect("room");
    fs::write(path.join(NEXT), "half").expect("room");
    assert_eq!(contents(path), ("old".to_owned(), "old".to_owned()));
    let writing = Writing::begin(path).expect("a directory");
    assert_eq!(names(path), ["memory.1", STATE]);
    assert_eq!(contents(path), ("old".to_owned(), "old".to_owned()));
    drop(writing);
    write(path, "new");
    assert_eq!(contents(path), ("new".to_owned(), "new".to_owned()));
    assert_eq!(names(path), ["memory.2", STATE]);
}

#[test]
fn one_that_is_given_up_at_the_last_moment_leaves_the_old_one_whole() {
    let directory = directory();
    let path = directory.as_path();
    write(path, "old");
    let writing = Writing::begin(path).expect("a directory");
    let memory = writing.memory().expect("a file");
    let why = writing.finish(b"new", memory, || Err("not now".to_owned()));
    assert_eq!(why.expect_err("given up").to_string(), "not now");
    assert_eq!(contents(path), ("old".to_owned(), "old".to_owned()));
    assert_eq!(names(path), ["memory.1", STATE]);
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let directory = directory();
    let path = directory.as_path();
    for (name, contents) in [("notes", ""), ("memory.old", ""), (STATE, "terraform")] {
        fs::write(path.join("memory.2024"), "mine").expect("room");
        fs::write(path.join(name), contents).expect("room");
        let before = names(path);
        let error = Writing::begin(path).err().expect("refused").to_string();
        assert!(
            error.contains("holds something else than a snapshot"),
            "{error}"
        );
        assert_eq!(names(path), before);
        fs::remove_file(path.join(name)).expect("a file");
    }
}

#[test]
fn two_do_not_write_in_one_directory() {
    let directory = directory();
    let path = directory.as_path();
    let _first = Writing::begin(path).expect("a directory");
    let error = Writing::begin(path).err().expect("taken").to_string();
    assert!(
        error.contains("another snapshot is being written there"),
        "{error}"
    );
}

#[test]
fn what_others_can_write_is_not_believed() {
    let directory = directory();
    let path = directory.as_path();
    write(path, "one");
    let memory = names(path).remove(0);
    for (name, mode) in [("", 0o770), ("", 0o707), (STATE, 0o620), (&memory, 0o602)] {
        let place = path.join(name);
        let before = fs::metadata(&place).expect("a file").permissions();
        fs::set_permissions(&place, fs::Permissions::from_mode(mode)).expect("mode");
        let error = refusal(path);
        assert!(error.contains("can be written by others"), "{error}");
        assert!(error.contains("chmod go-w it"), "{error}");
        fs::set_permissions(&place, before).expect("mode");
    }
    assert_eq!(contents(path).0, "one");
}

#[test]
fn what_is_no_snapshot_is_told() {
    let directory = directory();
    let path = directory.as_path();
    assert!(
        refusal(path).contains("`state` cannot be opened")
            || refusal(path).contains("/state` cannot be opened")
    );
    assert!(refusal(&path.join("none")).contains("give a directory that `snapshot`"));
    fs::write(path.join(STATE), "#!/bin/sh\n").expect("room");
    assert!(refusal(path).contains("this is no state of nido: it begins with \"#!/bin/sh"));
    fs::remove_file(path.join(STATE)).expect("a file");
    symlink("/etc/passwd", path.join(STATE)).expect("a link");
    assert!(refusal(path).contains("cannot be opened"));
}

#[test]
fn the_file_of_memory_is_in_the_directory_and_as_long_as_announced() {
    let directory = directory();
    let path = directory.as_path();
    write(path, "one");
    for name in ["../memory.1", "/etc/passwd", "state", "memory.1/", ""] {
        let state = state::encode(&state(name, "one")).expect("small");
        fs::write(path.join(STATE), state).expect("room");
        assert!(
            refusal(path).contains("is no name of a file of memory"),
            "{name}"
        );
    }
    write(path, "one");
    let memory = path.join(names(path).remove(0));
    fs::write(memory, "longer").expect("room");
    let error = refusal(path);
    assert!(
        error.contains("it has 6 bytes, and the state announces 3"),
        "{error}"
    );
}
