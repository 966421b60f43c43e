//! Requests in words, and what is said about those that are not valid.

use super::super::commands::COMMANDS;
use super::super::control_test::{bare, with_unit};
use super::*;

fn told(request: &str) -> String {
    answer(COMMANDS, &bare().0, request).text
}

/// What the client is sent in the end.
fn sent(answer: Answer) -> String {
    match answer.later {
        None => answer.text,
        Some(pending) => outcome(pending.outcome.recv().expect("it comes to something")),
    }
}

#[test]
fn an_answer_ends_with_its_only_empty_line() {
    let (monitor, _events) = with_unit();
    for command in COMMANDS {
        let mut request = command.name.to_owned();
        match command.name {
            "translate" => request.push_str(" 00:01.0 0x1000"),
            "device-add" | "snapshot" | "migrate" | "dirty-pages" | "upgrade" => {
                request.push_str(" help");
            }
            // It is answered later.
            "device-del" | "pause" | "resume" => continue,
            // There is none.
            "balloon" | "balloon-status" | "memory" | "snapshot-cancel" | "migrate-cancel" => {
                continue;
            }
            _ => {}
        }
        let text = sent(answer(COMMANDS, &monitor, &request));
        assert!(!text.starts_with("error"), "{text}");
        // A list may have nothing in it: this machine has nothing but a host bridge.
        let end = text.strip_suffix('\n').expect("an empty line");
        assert!(end.is_empty() || end.ends_with('\n'), "{text}");
        assert!(!end.contains("\n\n"), "{text}");
    }
}

#[test]
fn help_shows_every_command_with_its_arguments() {
    let text = told("help");
    assert_eq!(text.lines().count(), COMMANDS.len() + 1);
    assert!(
        text.contains("\ntranslate BDF[,pasid=N] ADDRESS "),
        "{text}"
    );
}

#[test]
fn sizes_are_parsed_with_their_key_or_without() {
    let size = |word| Argument::Size.parse(word);
    for word in ["size=512M", "512M", "0x20000000", "size=536870912"] {
        assert_eq!(size(word), Some(Value::Size(512 << 20)), "{word}");
    }
    for word in [
        "",
        "size=",
        "-1",
        "size=1M,",
        "bytes=1",
        "99999999999999999999",
    ] {
        assert_eq!(size(word), None, "{word}");
    }
}

#[test]
fn requesters_and_addresses_are_parsed() {
    let requester = |word| Argument::Requester.parse(word);
    let value = |source, pasid: Option<u32>| {
        Some(Value::Requester(
            SourceId(source),
            pasid.map(|pasid| Pasid::new(pasid).expect("20 bits")),
        ))
    };
    assert_eq!(requester("00:03.0"), value(0x18, None));
    assert_eq!(requester("0000:ff:1f.7"), value(0xffff, None));
    assert_eq!(
        requester("0:3.0,pasid=0xfffff"),
        value(0x18, Some(0xf_ffff))
    );
    assert_eq!(requester("00:03.0,pasid=10"), value(0x18, Some(10)));
    for bad in [
        "",
        "00:03",
        "03.0",
        "00:20.0",
        "00:03.8",
        "100:03.0",
        "00:03.0,",
        "00:03.0,pasid",
        "00:03.0,pasid=",
        "00:03.0,pasid=0x100000",
        "00:03.0,pasid=-1",
        "00:03.0,pasid=1,pasid=2",
        "00:+3.0",
        "0001:00:03.0",
        "é:é.é",
        ":.",
    ] {
        assert_eq!(requester(bad), None, "{bad}");
    }
    let address = |word| Argument::Address.parse(word);
    assert_eq!(
        address("0xffffffffffffffff"),
        Some(Value::Address(u64::MAX))
    );
    assert_eq!(address("4096"), Some(Value::Address(0x1000)));
    for bad in [
        "",
        "0x",
        "1000h",
        "0x1_0000",
        "+1",
        "-1",
        "0x10000000000000000",
    ] {
        assert_eq!(address(bad), None, "{bad}");
    }
}

#[test]
fn devices_to_remove_have_a_name_and_perhaps_force() {
    let removal = |word| Argument::Removal.parse(word);
    let value = |id: &str, force| Some(Value::Removal(id.to_owned(), force));
    assert_eq!(removal("disk0"), value("disk0", false));
    assert_eq!(removal("disk0,force=on"), value("disk0", true));
    assert_eq!(removal("disk0,force=off"), value("disk0", false));
    assert_eq!(removal("a,,b,force=on"), value("a,b", true));
    for bad in ["", ",force=on", "disk0,force=", "disk0,force=yes"] {
        assert_eq!(removal(bad), None, "{bad}");
    }
}

#[test]
fn a_device_to_add_may_have_blanks_and_is_refused_as_on_the_command_line() {
    let (monitor, _events) = bare();
    let later = |request| {
        let answer = answer(COMMANDS, &monitor, request);
        assert_eq!(answer.text, "\n");
        assert!(answer.later.is_some(), "it takes time");
        sent(answer)
    };
    let no_ports = "error: this machine has no root port; start nido with `--device pcie-root-port,id=PORT`, \
                    once for each device to come\n\n";
    assert_eq!(later("device-add  edu,id=e ,bus=p"), no_ports);
    assert_eq!(
        later("device-add virtio-blk-pci,path=my disk.img,bus=p"),
        no_ports
    );
    assert_eq!(
        later("device-del e"),
        "error: there is no device `e` behind a root port; all slots are empty\n\n"
    );
    assert!(told("device-add edu,help").contains("dma_mask"));
}

#[test]
fn mistakes_are_named_with_a_remedy() {
    for (request, expected) in [
        (
            "",
            "error: the request is empty; `help` lists the commands\n\n",
        ),
        (
            "  \t",
            "error: the request is empty; `help` lists the commands\n\n",
        ),
        (
            "reboot now",
            "error: unknown command `reboot`; `help` lists the commands\n\n",
        ),
        (
            "translate 00:01.0",
            "error: translate takes 2 arguments, not 1; write `translate BDF[,pasid=N] ADDRESS`\n\n",
        ),
        (
            "quit now",
            "error: quit takes 0 arguments, not 1; write `quit`\n\n",
        ),
        (
            "translate 00:01.0 here",
            "error: translate: ADDRESS=`here` is not valid: expected a number of at most 64 bits, such as 0xfffff000\n\n",
        ),
        (
            "bindings",
            "error: this machine has no remapping unit; start nido with `--device intel-iommu`\n\n",
        ),
        (
            "device-add",
            "error: device-add takes 1 arguments, not 0; write `device-add TYPE,bus=PORT[,key=value]...`\n\n",
        ),
        (
            "device-add edu,ats=perhaps",
            "error: --device edu: ats=`perhaps` is not valid: expected `on` or `off`\n\n",
        ),
        (
            "device-add intel-iommu",
            "error: an intel-iommu cannot be plugged in: it is part of the machine; give it on the command line\n\n",
        ),
        (
            "device-del e,force=maybe",
            "error: device-del: ID[,force=on]=`e,force=maybe` is not valid: expected the id of a device, or of the port that it \
             is behind, and force=on to pull it out\n\n",
        ),
        // What a client sends does not reach a terminal as it is.
        (
            "\x1b[2J",
            "error: unknown command `\\u{1b}[2J`; `help` lists the commands\n\n",
        ),
    ] {
        assert_eq!(told(request), expected);
    }
}
