//! libFuzzer's program for [`fuzz::unit`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::unit::run(data));
