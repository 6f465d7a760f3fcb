//! Plays the seeds, and what was once found, on any toolchain.

use std::path::Path;

fn play(target: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut num_seeds = 0;
    for seed in std::fs::read_dir(corpus.join(target)).unwrap() {
        body(&std::fs::read(seed.unwrap().path()).unwrap());
        num_seeds += 1;
    }
    assert!(num_seeds >= 5, "{target} has {num_seeds} seeds");
}

#[test]
fn events_are_read_or_refused() {
    play("event", super::event);
}

#[test]
fn datetimes_are_read_or_refused() {
    play("datetime", super::datetime);
}

#[test]
fn configurations_are_read_or_refused() {
    play("config", super::config);
}

#[test]
fn messages_are_the_same_in_any_pieces() {
    play("frames", super::frames);
}

#[test]
fn letters_keep_to_their_lines() {
    play("letters", super::letters);
}
