//! libFuzzer's program for [`fuzz::irte`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::irte::run(data));
