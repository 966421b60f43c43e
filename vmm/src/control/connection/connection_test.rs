//! How long a client may take.

use super::*;

fn pair(now: Instant) -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("descriptors");
    (Connection::new(ours, now).expect("a socket"), theirs)
}

fn echo(request: &str) -> Answer {
    Answer::from(format!("{request}\n\n"))
}

fn step(connection: &mut Connection, now: Instant) -> Wants {
    connection.step(now, echo, |_| {})
}

#[test]
fn a_request_has_ten_seconds_from_its_first_byte() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let (mut connection, mut client) = pair(start);
    assert_eq!(step(&mut connection, after(500)), Wants::Input);
    client.write_all(b"a").expect("taken");
    assert_eq!(step(&mut connection, after(500)), Wants::Input);
    assert_eq!(connection.deadline(), after(510));
    // Further bytes buy no time.
    client.write_all(b"b").expect("taken");
    assert_eq!(step(&mut connection, after(509)), Wants::Input);
    assert_eq!(step(&mut connection, after(510)), Wants::Close);
}

#[test]
fn a_silent_client_has_ten_minutes() {
    let start = Instant::now();
    let (mut connection, mut client) = pair(start);
    assert_eq!(connection.deadline(), start + Duration::from_secs(600));
    client.write_all(b"hello\n").expect("taken");
    let later = start + Duration::from_secs(599);
    assert_eq!(step(&mut connection, later), Wants::Turn);
    assert_eq!(step(&mut connection, later), Wants::Input);
    assert_eq!(connection.deadline(), later + Duration::from_secs(600));
}

#[test]
fn an_answer_has_ten_seconds_to_be_read_in_however_small_pieces() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let (mut connection, mut client) = pair(start);
    client.write_all(b"much\n").expect("taken");
    let much = |_: &str| Answer::from("x".repeat(16 << 20));
    assert_eq!(connection.step(start, much, |_| {}), Wants::Output);
    for second in 0..10 {
        assert_eq!(step(&mut connection, after(second)), Wants::Output);
        client.read_exact(&mut [0; 4096]).expect("some of it");
    }
    assert_eq!(step(&mut connection, after(10)), Wants::Close);
}

#[test]
fn what_a_request_causes_happens_even_if_nobody_reads_the_answer() {
    let start = Instant::now();
    let (mut connection, mut client) = pair(start);
    client.write_all(b"quit\n").expect("taken");
    drop(client);
    let quit = |_: &str| Answer {
        text: "yes\n\n".to_owned(),
        event: Some(Event::Quit),
        ..Answer::default()
    };
    let mut happened = None;
    let wants = connection.step(start, quit, |event| happened = Some(event));
    assert_eq!((wants, happened), (Wants::Close, Some(Event::Quit)));
}
