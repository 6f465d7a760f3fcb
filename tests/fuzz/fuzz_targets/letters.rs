#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| event_persister_fuzz::targets::letters(data));
