use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::super::failure;
use super::*;

/// Short, so that a connection that hangs shows as soon as time stands still.
const PATIENCE: Duration = Duration::from_secs(5);

fn url() -> RedisUrl {
    RedisUrl::default()
}

fn connected() -> (EntryReader, DuplexStream) {
    let (stream, peer) = duplex(1 << 20);
    let reader = EntryReader {
        stream: Box::new(stream),
        buffer: BytesMut::new(),
        patience: PATIENCE,
        id: None,
    };
    (reader, peer)
}

fn text(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

fn list(parts: &[Vec<u8>]) -> Vec<u8> {
    [format!("*{}\r\n", parts.len()).into_bytes(), parts.concat()].concat()
}

fn entry(number: usize, data: &[u8]) -> Vec<u8> {
    let id = format!("5-{number}");
    list(&[text(id.as_bytes()), list(&[text(b"data"), text(data)])])
}

fn answer(entries: &[Vec<u8>]) -> Vec<u8> {
    list(&[list(&[text(b"events"), list(entries)])])
}

fn room(max_bytes: usize, must_take_one: bool) -> Room {
    let permit = Permit {
        max_messages: 1000,
        max_bytes,
    };
    Room {
        permit,
        must_take_one,
    }
}

/// What is understood of an answer of which so many bytes arrive at once.
async fn understood(answer: &[u8], at_once: usize, mut room: Room) -> RedisResult<EntriesRead> {
    understood_in(answer, at_once, &mut room).await
}

async fn understood_in(answer: &[u8], at_once: usize, room: &mut Room) -> RedisResult<EntriesRead> {
    let (mut reader, mut peer) = connected();
    let answer = answer.to_vec();
    let peer = tokio::spawn(async move {
        let mut command = [0; 14];
        peer.read_exact(&mut command).await.unwrap();
        for piece in answer.chunks(at_once) {
            peer.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        peer
    });
    let ping = redis::cmd("PING");
    let read = reader.read(&ping, Reply::Streams, room, PATIENCE).await;
    drop(peer.await.unwrap());
    if read.as_ref().err().is_none_or(failure::is_answer) {
        assert!(reader.buffer.is_empty(), "all of it was understood");
    }
    read
}

fn data(entry: &StreamEntry) -> &[u8] {
    match entry.body.as_ref().unwrap() {
        Body::Raw { data, .. } => data,
        Body::Entry(entry) => entry.raw(),
    }
}

#[tokio::test]
async fn an_answer_may_be_nothing_an_error_or_entries_without_text() {
    for nothing in ["*-1\r\n", "$-1\r\n", "*0\r\n"] {
        let read = understood(nothing.as_bytes(), 1, room(10, true))
            .await
            .unwrap();
        assert_eq!(read.num(), 0);
    }
    let error = understood(b"-NOGROUP No such key\r\n", 1, room(10, true))
        .await
        .err()
        .unwrap();
    assert!(failure::has_vanished(&error), "{error}");
    let gone = list(&[text(b"5-1"), b"*-1\r\n".to_vec()]);
    let read = understood(&answer(&[gone, entry(2, b"{}")]), 1, room(10, true))
        .await
        .unwrap();
    assert!(read.entries[0].body.is_none());
    assert_eq!(read.entries[0].id.to_string(), "5-1");
    assert_eq!(data(&read.entries[1]), b"{}");
}

fn body_of(fields: &[(&'static [u8], &'static [u8])]) -> Body {
    let id = "1526919030474-55".parse().unwrap();
    let texts = fields.iter().flat_map(|&(field, value)| [field, value]);
    body(id, &texts.map(Bytes::from_static).collect::<Vec<_>>()).unwrap()
}

#[test]
fn data_decides_whatever_else_there_is() {
    let fields: [(&[u8], &[u8]); 3] = [(b"data", b"{}"), (b"attributes", b"no"), (b"x", b"")];
    let Body::Raw { position, data } = body_of(&fields) else {
        panic!("data is there")
    };
    assert_eq!(
        (position.as_str(), &data[..]),
        ("1526919030474-55", &b"{}"[..])
    );
    let invalid = body_of(&[(b"data", b"\xff\xfe")]);
    assert_eq!(invalid.num_bytes(), 2, "goes on as it is");
    let twice = body_of(&[(b"data", b"1"), (b"data", b"22")]);
    assert_eq!(twice.num_bytes(), 2);
}

#[test]
fn an_entry_without_data_is_kept_whole() {
    let body = body_of(&[(b"a", b"\"1\""), (b"\xff", b"2")]);
    assert_eq!(body.position().as_str(), "1526919030474-55");
    let Body::Entry(entry) = body else {
        panic!("a rejection")
    };
    assert_eq!(entry.raw(), br#"[["a","\"1\""],[{"hex":"ff"},"2"]]"#);
}

async fn answered(
    reader: &mut EntryReader,
    reply: Reply,
    room: &mut Room,
) -> RedisResult<EntriesRead> {
    reader
        .read(&redis::cmd("PING"), reply, room, PATIENCE)
        .await
}

/// What the scripts of the shadow and of the audit answer.
#[tokio::test]
async fn entries_come_with_a_number_or_with_ids() {
    let (mut reader, mut peer) = connected();
    let one_stream = answer(&[entry(1, b"{}"), entry(2, b"too large")]);
    peer.write_all(&list(&[b":3\r\n".to_vec(), one_stream]))
        .await
        .unwrap();
    let mut small = room(10, true);
    let read = answered(&mut reader, Reply::LostAndStreams, &mut small)
        .await
        .unwrap();
    assert_eq!(
        (read.num_lost, read.entries.len(), read.skipped.len()),
        (3, 1, 1)
    );
    peer.write_all(&list(&[b":0\r\n".to_vec(), b"$-1\r\n".to_vec()]))
        .await
        .unwrap();
    let read = answered(&mut reader, Reply::LostAndStreams, &mut small)
        .await
        .unwrap();
    assert_eq!((read.num_lost, read.num()), (0, 0));
    let page = list(&[
        list(&[entry(1, b"{}")]),
        list(&[text(b"5-1"), text(b"6-0")]),
    ]);
    peer.write_all(&page).await.unwrap();
    let read = answered(&mut reader, Reply::Page, &mut room(10, true))
        .await
        .unwrap();
    assert_eq!((read.entries.len(), read.pending.len()), (1, 2));
    peer.write_all(b"-ERR no\r\n").await.unwrap();
    let error = answered(&mut reader, Reply::Page, &mut small)
        .await
        .err()
        .unwrap();
    assert!(failure::is_answer(&error), "{error}");
}

#[tokio::test]
async fn one_entry_is_kept_however_large() {
    let large = vec![b'x'; 3 * CHUNK];
    let entries = [entry(1, &large), entry(2, b""), entry(3, &large)];
    let read = understood(&answer(&entries), CHUNK, room(1, true))
        .await
        .unwrap();
    assert_eq!(read.entries.len(), 1);
    assert_eq!(data(&read.entries[0]), large);
    // With the name of the field.
    let skipped: Vec<usize> = read.skipped.iter().map(|(_, size)| *size).collect();
    assert_eq!(
        skipped,
        [4, large.len() + 4],
        "and nothing behind one that is skipped"
    );
}

#[tokio::test]
async fn what_has_another_form_is_no_answer() {
    let many_lines = vec![b'+'; MAX_LINE + 2];
    let odd = list(&[text(b"5-1"), list(&[text(b"data")])]);
    let broken: [&[u8]; 9] = [
        b"*1\r\n*3\r\n",
        b"*1\r\n*2\r\n$6\r\nevents\r\n$2\r\n",
        b"*1\r\n*2\r\n$-1\r\n",
        b"*x\r\n",
        b"*1\n",
        b"+OK\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        &many_lines,
        &answer(&[odd]),
    ];
    for bytes in broken {
        let error = understood(bytes, 1000, room(10, true)).await.err().unwrap();
        assert!(!failure::leaves_connections_sound(&error), "{error}");
    }
    let no_id = list(&[text(b"5"), list(&[])]);
    assert!(
        understood(&answer(&[no_id]), 1, room(10, true))
            .await
            .is_err()
    );
}

async fn failure_of(reader: &mut EntryReader) -> redis::RedisError {
    answered(reader, Reply::Streams, &mut room(10, true))
        .await
        .err()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_go_on_is_not_awaited_for_ever() {
    let (mut reader, mut peer) = connected();
    let begun = tokio::time::Instant::now();
    let error = failure_of(&mut reader).await;
    assert!(error.is_timeout(), "{error}");
    assert_eq!(begun.elapsed(), PATIENCE);
    peer.write_all(b"*1\r\n*2\r\n").await.unwrap();
    let error = failure_of(&mut reader).await;
    assert!(error.is_timeout(), "{error}");
    assert_eq!(begun.elapsed(), PATIENCE + RESPONSE_TIMEOUT);
    drop(peer);
    let error = failure_of(&mut reader).await;
    assert!(
        !failure::is_answer(&error) && !error.is_timeout(),
        "{error}"
    );
}

/// Answers what is asked, one line for each command.
async fn greeted(url: RedisUrl, answers: &[&str]) -> (RedisResult<Option<i64>>, String) {
    let (stream, mut peer) = duplex(1 << 16);
    peer.write_all(answers.concat().as_bytes()).await.unwrap();
    let id = EntryReader::greet(Box::new(stream), &url)
        .await
        .map(|reader| reader.id);
    let mut asked = String::new();
    peer.read_to_string(&mut asked).await.unwrap();
    (id, asked.replace("\r\n", " "))
}

#[tokio::test]
async fn says_who_it_is_and_where_it_wants_to_read() {
    let full: RedisUrl = "redis://me:secret@localhost/3".parse().unwrap();
    let well = [
        "+OK\r\n",
        "+OK\r\n",
        "-ERR unknown subcommand\r\n",
        "+OK\r\n",
        ":17\r\n",
    ];
    let (id, asked) = greeted(full.clone(), &well).await;
    assert_eq!(id.unwrap(), Some(17));
    assert!(
        asked.starts_with("*3 $4 AUTH $2 me $6 secret *2 $6 SELECT $1 3 "),
        "{asked}"
    );
    let (id, _) = greeted(url(), &["+OK\r\n", "+OK\r\n", "-NOPERM no\r\n"]).await;
    assert_eq!(id.unwrap(), None);
    let (refused, asked) = greeted(full, &["-WRONGPASS no\r\n"]).await;
    assert_eq!(
        failure::code(&refused.unwrap_err()).as_deref(),
        Some("WRONGPASS")
    );
    assert!(!asked.contains("SELECT"), "{asked}");
}

proptest! {
    /// Entries are kept from the first on, within the room but at least one, and the others counted,
    /// however the bytes arrive.
    #[test]
    fn keeps_what_fits_and_counts_the_rest(
        sizes in prop::collection::vec(0_usize..300, 0..20),
        at_once in 1_usize..500,
        max_bytes in 0_usize..2_000,
        must_take_one: bool,
    ) {
        let all: Vec<Vec<u8>> = sizes.iter().enumerate()
            .map(|(number, &size)| vec![b'a' + u8::try_from(number).unwrap(); size])
            .collect();
        let entries: Vec<_> = all.iter().enumerate().map(|(n, data)| entry(n, data)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut rest = room(max_bytes, must_take_one);
        let read = runtime.block_on(understood_in(&answer(&entries), at_once, &mut rest)).unwrap();
        // Each with the name of its field.
        let with_name: Vec<usize> = sizes.iter().map(|size| size + 4).collect();
        let num_kept = read.entries.len();
        let skipped: Vec<usize> = read.skipped.iter().map(|(_, size)| *size).collect();
        prop_assert_eq!(&skipped[..], &with_name[num_kept..]);
        for (number, entry) in read.entries.iter().enumerate() {
            prop_assert_eq!(entry.id.to_string(), format!("5-{number}"));
            prop_assert_eq!(data(entry), &all[number][..]);
        }
        let kept: usize = with_name[..num_kept].iter().sum();
        prop_assert!(kept <= max_bytes || must_take_one && num_kept == 1);
        if let Some(next) = skipped.first() {
            prop_assert!(kept + next > max_bytes);
            prop_assert!(num_kept > 0 || !must_take_one);
        }
        prop_assert_eq!(rest.permit.max_bytes, max_bytes.saturating_sub(kept));
        prop_assert_eq!(rest.permit.max_messages, 1000 - num_kept);
        prop_assert_eq!(rest.must_take_one, must_take_one && num_kept == 0);
    }

    /// No answer breaks it, and none is awaited beyond its end.
    #[test]
    fn anything_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut reader, mut peer) = connected();
            peer.write_all(&bytes).await.unwrap();
            peer.shutdown().await.unwrap();
            drop(answered(&mut reader, Reply::Streams, &mut room(100, true)).await);
        });
    }
}
