//! PID 1 of the lab's level 1.

fn main() {
    lab::agent::init::main();
}
