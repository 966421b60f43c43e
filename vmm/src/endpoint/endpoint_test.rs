//! What is a place, and what is said of what is none.

use super::*;

fn error(text: &str) -> String {
    match text.parse::<Endpoint>() {
        Ok(endpoint) => panic!("{text} is {endpoint:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_place_is_read_and_shown_as_it_is_written() {
    let unix = |path: &str| Endpoint::Unix(path.into());
    let tcp = |place: &str| Endpoint::Tcp(place.to_owned());
    for (text, endpoint) in [
        ("unix:/run/a.sock", unix("/run/a.sock")),
        ("unix:a:b", unix("a:b")),
        ("tcp:host.example:4444", tcp("host.example:4444")),
        ("tcp:192.0.2.1:0", tcp("192.0.2.1:0")),
        ("tcp:[2001:db8::1]:65535", tcp("[2001:db8::1]:65535")),
    ] {
        assert_eq!(text.parse(), Ok(endpoint.clone()));
        assert_eq!(endpoint.to_string(), text);
    }
}

#[test]
fn what_is_no_place_is_refused_with_what_to_write() {
    for text in ["", "/run/a.sock", "UNIX:/a", "udp:a:1"] {
        let said = error(text);
        assert!(said.contains("write unix:PATH or tcp:HOST:PORT"), "{said}");
        assert!(said.contains(&format!("`{text}`")), "{said}");
    }
    assert!(error("unix:").contains("lacks the path"));
    for text in [
        "tcp:",
        "tcp:a",
        "tcp:a:",
        "tcp:a:65536",
        "tcp:a:+1",
        "tcp:a:b",
        "tcp:[::1]",
    ] {
        assert!(error(text).contains("lacks a port"), "{}", error(text));
    }
    assert!(error("tcp::1").contains("tcp:0.0.0.0:PORT"));
    for text in ["tcp:::1:80", "tcp:[::1:80", "tcp:::1]:80"] {
        assert!(error(text).contains("in brackets"), "{}", error(text));
    }
}
