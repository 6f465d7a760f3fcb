//! Properties over arbitrary events and arbitrary bytes.

use fastrand::Rng;
use jiter::Jiter;
use proptest::prelude::*;

use super::*;
use crate::testing::json_of;

type Labels = Vec<(String, String)>;

/// The columns of an event.
#[derive(Debug, Clone)]
struct Columns {
    id: u128,
    occurred: i64,
    received: i64,
    event: String,
    resource: Labels,
    related: Vec<Labels>,
    follows: Option<u128>,
}

fn columns() -> impl Strategy<Value = Columns> {
    // Microseconds of the years 2 to 9998, so that any offset stays within Python's years.
    let microseconds = -62_104_060_800_000_000..253_370_764_800_000_000_i64;
    let labels = || prop::collection::vec((text(), text()), 0..5);
    let related = prop::collection::vec((labels(), some_text()), 0..4);
    (
        any::<u128>(),
        microseconds.clone(),
        microseconds,
        text(),
        (labels(), some_text()),
        related,
        any::<Option<u128>>(),
    )
        .prop_map(
            |(id, occurred, received, event, (labels, own_id), related, follows)| Columns {
                id,
                occurred,
                received,
                event,
                resource: complete(labels, &[(ID_LABEL, &own_id)]),
                related: related
                    .into_iter()
                    .map(|(labels, other)| {
                        complete(labels, &[(ROLE_LABEL, &other), (ID_LABEL, &other)])
                    })
                    .collect(),
                follows,
            },
        )
}

/// Any characters, controls and those beyond 16 bits included.
fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..8).prop_map(String::from_iter)
}

fn some_text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 1..8).prop_map(String::from_iter)
}

/// Distinct labels, with the required ones somewhere among them.
fn complete(labels: Labels, required: &[(&str, &str)]) -> Labels {
    let mut complete: Labels = Vec::new();
    for (key, value) in labels {
        if complete.iter().all(|(known, _)| *known != key) {
            complete.push((key, value));
        }
    }
    for (key, value) in required {
        let place = complete.len() / 2;
        complete.insert(place, (key.to_string(), value.to_string()));
    }
    complete
}

/// Stands for a number that is not kept, until one is chosen.
const NOT_KEPT: char = '\u{1}';
/// Stands for one that becomes 0.0.
const TOO_SMALL: char = '\u{2}';

/// Numbers that only Python takes for JSON, and such as are beyond the range of a double.
const NUMBERS_NOT_KEPT: [&str; 8] = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e309",
    "-1.5E+400",
    "1e131071",
    "123456.789e0304",
    "1e99999999999999999999",
];
const NUMBERS_TOO_SMALL: [&str; 4] = ["1e-400", "0e-0400", "0.0E+999", "2.5e-99999999999999999999"];
const NUMBERS_KEPT: [&str; 7] = [
    "-12.50e+3",
    "1.7976931348623157e308",
    "4.9e-324",
    "-0",
    "0.00",
    "12345678901234567890.5",
    "170141183460469231731687303715884105728",
];

/// Writes an event as some sender might: any order, white space, escapes, forms of UUIDs and
/// times, repeated and unknown keys.
struct Sender {
    rng: Rng,
    json: String,
}

impl Sender {
    /// The text, and the payload in it as it is to be kept.
    fn write(columns: &Columns, seed: u64) -> (String, String) {
        let (payload, kept) = Self::new(seed).payload();
        let mut fields = Vec::new();
        let mut add = |key: &'static str, write: &dyn Fn(&mut Self)| {
            let mut sender = Self::new(seed ^ fields.len() as u64);
            write(&mut sender);
            fields.push((key, sender.json));
        };
        add("id", &|sender| sender.uuid(columns.id));
        add("occurred", &|sender| sender.time(columns.occurred));
        add("received", &|sender| sender.time(columns.received));
        add("event", &|sender| sender.string(&columns.event));
        add("resource", &|sender| sender.labels(&columns.resource));
        add("related", &|sender| {
            sender.list('[', &columns.related, ']', |sender, labels| {
                sender.labels(labels)
            });
        });
        add("payload", &|sender| sender.json.push_str(&payload));
        if let Some(follows) = columns.follows {
            add("follows", &|sender| sender.uuid(follows));
        }
        add("unknown", &|sender| {
            sender.json.push_str("[[],{\"id\":NaN}]")
        });

        let mut sender = Self::new(seed);
        sender.rng.shuffle(&mut fields);
        // Whatever stands in front is overruled by what comes later.
        let overruled = fields[sender.rng.usize(..fields.len())].0;
        fields.insert(0, (overruled, "[null, {\"x\":-Infinity}]".to_owned()));
        sender.list('{', &fields, '}', |sender, (key, json)| {
            sender.string(key);
            sender.space();
            sender.json.push(':');
            sender.space();
            sender.json.push_str(json);
        });
        (sender.json, kept)
    }

    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            json: String::new(),
        }
    }

    fn space(&mut self) {
        for _ in 0..self.rng.usize(..3) {
            self.json
                .push(*self.rng.choice(&[' ', '\t', '\n', '\r']).unwrap());
        }
    }

    fn list<T>(&mut self, open: char, items: &[T], close: char, write: impl Fn(&mut Self, &T)) {
        self.space();
        self.json.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.json.push(',');
            }
            self.space();
            write(self, item);
            self.space();
        }
        self.json.push(close);
        self.space();
    }

    fn labels(&mut self, labels: &Labels) {
        let mut written = labels.clone();
        // A key that comes again keeps its first place and its last value.
        let (key, value) = labels[self.rng.usize(..labels.len())].clone();
        if self.rng.bool() {
            for (_, overruled) in written.iter_mut().filter(|(other, _)| *other == key) {
                overruled.push_str(" overruled");
            }
            written.push((key, value));
        }
        self.list('{', &written, '}', |sender, (key, value)| {
            sender.string(key);
            sender.space();
            sender.json.push(':');
            sender.space();
            sender.string(value);
        });
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        for character in text.chars() {
            let is_special = character < ' ' || character == '"' || character == '\\';
            match character {
                '\n' if self.rng.bool() => self.json.push_str("\\n"),
                '/' | '"' | '\\' if self.rng.bool() => self.json.extend(['\\', character]),
                _ if is_special || self.rng.u8(..4) == 0 => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let escape = match self.rng.bool() {
                            true => format!("\\u{unit:04x}"),
                            false => format!("\\u{unit:04X}"),
                        };
                        self.json.push_str(&escape);
                    }
                }
                _ => self.json.push(character),
            }
        }
        self.json.push('"');
    }

    fn uuid(&mut self, uuid: u128) {
        let uuid = Uuid::from_u128(uuid);
        let text = match self.rng.u8(..5) {
            0 => uuid.simple().to_string(),
            1 => uuid.braced().to_string(),
            2 => uuid.urn().to_string(),
            3 => uuid.to_string().to_uppercase(),
            _ => uuid.to_string(),
        };
        self.string(&text);
    }

    fn time(&mut self, microseconds: i64) {
        let utc = DateTime::from_timestamp_micros(microseconds).unwrap();
        if self.rng.bool()
            && microseconds % 1_000_000 == 0
            && utc.timestamp().abs() < 20_000_000_000
        {
            return self.json.push_str(&utc.timestamp().to_string());
        }
        let minutes = self.rng.i32(-1_439..=1_439);
        let offset = chrono::FixedOffset::east_opt(minutes * 60).unwrap();
        let separator = self.rng.choice(&['T', 't', ' ', '_']).unwrap();
        let further_digits = self.rng.choice(&["", "0", "999"]).unwrap();
        let text = match self.rng.bool() {
            true => format!(
                "{}{further_digits}Z",
                utc.format(&format!("%Y-%m-%d{separator}%T%.6f"))
            ),
            false => utc
                .with_timezone(&offset)
                .format(&format!("%Y-%m-%d{separator}%T%.6f{further_digits}%:z"))
                .to_string(),
        };
        self.string(&text);
    }

    /// A payload as it is sent, and as it is to be kept.
    fn payload(mut self) -> (String, String) {
        self.json.push('{');
        self.json.push_str("\"first\":");
        self.value(0);
        for _ in 0..self.rng.usize(..4) {
            self.json.push_str(" , \"N\\\"I\" :\t");
            self.value(0);
        }
        self.json.push('}');
        let kept = self
            .json
            .replace(NOT_KEPT, "null")
            .replace(TOO_SMALL, "0.0");
        let mut sent = String::new();
        for part in self.json.split_inclusive([NOT_KEPT, TOO_SMALL]) {
            let not_kept = self.rng.choice(&NUMBERS_NOT_KEPT).unwrap();
            let too_small = self.rng.choice(&NUMBERS_TOO_SMALL).unwrap();
            let part = part.replace(NOT_KEPT, not_kept);
            sent.push_str(&part.replace(TOO_SMALL, too_small));
        }
        (sent, kept)
    }

    fn value(&mut self, depth: usize) {
        match self.rng.u8(..if depth < 4 { 8 } else { 6 }) {
            0 if self.rng.bool() => self.json.push(TOO_SMALL),
            0 => self.json.push(NOT_KEPT),
            1 => self.json.push_str("[]"),
            2 => {
                let number = self.rng.choice(&NUMBERS_KEPT).unwrap();
                self.json.push_str(number);
            }
            3 => self.json.push_str("true"),
            4 => self.json.push_str("\"NaN \\\\\\\" Infinity\""),
            5 => self.string("]}\u{1f600}\\"),
            kind => {
                let num_values = self.rng.usize(..4);
                let values: Vec<_> = (0..num_values).collect();
                let (open, close) = if kind == 6 { ('[', ']') } else { ('{', '}') };
                self.list(open, &values, close, |sender, _| {
                    if kind == 7 {
                        sender.json.push_str("\"k\":");
                    }
                    sender.value(depth + 1);
                });
            }
        }
    }
}

/// The event that the columns and the payload make.
fn event_of(columns: &Columns, payload: &str) -> ReceivedEvent {
    ReceivedEvent {
        id: Uuid::from_u128(columns.id),
        occurred: DateTime::from_timestamp_micros(columns.occurred).unwrap(),
        received: DateTime::from_timestamp_micros(columns.received).unwrap(),
        event: columns.event.clone(),
        resource: Resource::from_checked(&columns.resource),
        related: columns
            .related
            .iter()
            .map(|labels| Resource::from_checked(labels))
            .collect(),
        follows: columns.follows.map(Uuid::from_u128),
        payload: payload.into(),
        text: ByteString::new(),
    }
}

fn check_any(bytes: Vec<u8>) {
    let received = Received::FromText { default: moment() };
    let Ok(event) = ReceivedEvent::parse_bytes(bytes.into(), &EventLimits::default(), received)
    else {
        return;
    };
    // Whatever was accepted has an id, and a payload that is an object to any JSON parser.
    assert!(!event.resource.id().is_empty());
    let mut payload = Jiter::new(event.payload().as_bytes());
    assert!(payload.next_object_bytes().is_ok());
    let mut payload = Jiter::new(event.payload().as_bytes());
    payload.next_skip().unwrap();
    payload.finish().unwrap();
    assert!(!holds_unreadable_number(event.payload()));
}

/// The value that a number's text stands for, to any reader but Python and PostgreSQL.
fn double(number: &str) -> f64 {
    number.parse().unwrap()
}

/// A number of any length and exponent, near the ends of every range in particular.
fn number() -> impl Strategy<Value = String> {
    let length = || {
        prop_oneof![
            0..4_usize,
            100..350_usize,
            4_290..4_300_usize,
            16_370..16_400_usize
        ]
    };
    let exponent = prop_oneof![
        Just(None),
        (-30_i64..30).prop_map(Some),
        (-350_i64..350).prop_map(Some),
        (-17_000_i64..17_000).prop_map(Some),
        any::<i64>().prop_map(Some),
    ];
    let written = |exponent: Option<i64>, sign: &str| match exponent {
        Some(exponent) if exponent >= 0 => format!("e{sign}{exponent}"),
        Some(exponent) => format!("E{exponent}"),
        None => String::new(),
    };
    (
        "-?",
        "[1-9]",
        length(),
        length(),
        "[0-9]",
        exponent,
        "[+]?|0{1,3}",
    )
        .prop_map(
            move |(minus, first, num_digits, num_decimals, digit, exponent, sign)| {
                let (digits, decimals) = (digit.repeat(num_digits), digit.repeat(num_decimals));
                let digits = match num_digits {
                    0 => "0".to_owned(),
                    num_digits => first + &digits[1..num_digits.min(4_300)],
                };
                let point = if decimals.is_empty() { "" } else { "." };
                format!(
                    "{minus}{digits}{point}{decimals}{}",
                    written(exponent, &sign)
                )
            },
        )
}

proptest! {
    #[test]
    fn a_number_keeps_its_text_or_becomes_what_prefect_stores(number in number(), before in "[a-f0-9-]{0,80}") {
        let sent = format!("{{\"a\":[\"{before}\"],\"n\":{number}}}");
        let text = format!(
            "{{\"id\":\"{}\",\"occurred\":0,\"event\":\"\",\"resource\":{{\"{ID_LABEL}\":\"a\"}},\
             \"payload\":{sent}}}",
            Uuid::nil()
        );
        let event = parse(text).unwrap();
        let start = format!("{{\"a\":[\"{before}\"],\"n\":");
        let kept = event.payload().strip_prefix(&start).unwrap();
        let kept = kept.strip_suffix('}').unwrap();
        let is_integer = !number.contains(['.', 'e', 'E']);
        if is_integer {
            prop_assert_eq!(kept, &number);
        } else if !double(&number).is_finite() {
            prop_assert_eq!(kept, "null");
        } else if kept != number {
            prop_assert_eq!(double(kept).to_bits(), double(&number).to_bits());
            prop_assert!(kept.len() <= 24, "{}", kept);
        }
        prop_assert!(!holds_unreadable_number(kept));
    }

    #[test]
    fn what_was_parsed_and_written_parses_to_the_same_event(columns in columns(), seed: u64) {
        let (text, payload) = Sender::write(&columns, seed);
        let sent = parse(text.clone());
        prop_assert!(sent.is_ok(), "{:?}: {text}", sent);
        let sent = sent.unwrap();
        prop_assert_eq!(sent.text(), &text);
        prop_assert_eq!(json_of(&sent), json_of(&event_of(&columns, &payload)));
        prop_assert!(sent == event_of(&columns, &payload));
        prop_assert!(parse(json_of(&sent)).unwrap() == sent);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        check_any(bytes);
    }

    #[test]
    fn a_damaged_event_is_read_or_refused(columns in columns(), seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let mut bytes = Sender::write(&columns, seed).0.into_bytes();
        for _ in 0..rng.usize(1..4) {
            let place = rng.usize(..bytes.len());
            match rng.u8(..4) {
                0 => bytes.truncate(place.max(1)),
                1 => bytes[place] = rng.u8(..),
                2 => bytes.insert(place, *rng.choice(b"\"\\{}[],:NI-0eu").unwrap()),
                _ => drop(bytes.drain(place..(place + rng.usize(..20)).min(bytes.len() - 1).max(place))),
            }
        }
        check_any(bytes);
    }
}
