//! PID 1 of the lab's guests.

fn main() {
    lab::guest::main();
}
