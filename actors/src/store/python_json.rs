//! JSON as Python's `json.dumps(json.loads(text))` writes it, which is how Prefect stores it.
//!
//! ASCII only, `", "` and `": "` between tokens, keys in their order; of a repeated key the last value, in
//! the place of the first; floats in Python's shortest form. The text is rewritten token by token, without a
//! tree and without recursion. Input that is no JSON comes out as some ASCII text, never as a panic.

use std::collections::{HashMap, HashSet};

use crate::event::write_float;

/// Up to this many keys are compared one with another; more are hashed.
const FEW_KEYS: usize = 8;

pub(super) fn rewrite(json: &str, out: &mut String) {
    let mut rewriter = Rewriter {
        json,
        at: 0,
        out,
        open: Vec::new(),
        members: Vec::new(),
        expects_key: false,
    };
    while rewriter.token() {}
}

pub(super) fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    loop {
        let (plain, special) = rest.split_at(plain_length(rest));
        out.push_str(plain);
        if special.is_empty() {
            break;
        }
        let mut chars = special.chars();
        if let Some(char) = chars.next() {
            write_escaped(char, out);
        }
        rest = chars.as_str();
    }
    out.push('"');
}

/// Appends an object of texts, whose keys are distinct.
pub(super) fn write_object<'a>(
    members: impl Iterator<Item = (&'a str, &'a str)>,
    out: &mut String,
) {
    out.push('{');
    for (index, (key, value)) in members.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_string(key, out);
        out.push_str(": ");
        write_string(value, out);
    }
    out.push('}');
}

pub(super) fn write_array<T>(
    values: impl Iterator<Item = T>,
    out: &mut String,
    write: impl Fn(T, &mut String),
) {
    out.push('[');
    for (index, value) in values.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(value, out);
    }
    out.push(']');
}

enum Open {
    Array,
    Object {
        start: usize,
        /// How many members of the objects around it are on the stack.
        outer_members: usize,
    },
}

struct Member {
    start: usize,
    key_end: usize,
    end: usize,
}

struct Rewriter<'a> {
    json: &'a str,
    at: usize,
    out: &'a mut String,
    open: Vec<Open>,
    /// Of all open objects, the innermost last.
    members: Vec<Member>,
    expects_key: bool,
}

impl Rewriter<'_> {
    fn token(&mut self) -> bool {
        let Some(&byte) = self.json.as_bytes().get(self.at) else {
            return false;
        };
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b'{' => self.open_object(),
            b'[' => self.open_array(),
            b'}' | b']' => self.close(byte),
            b',' => self.comma(),
            b':' => self.punctuation(": "),
            _ => self.word(),
        }
        true
    }

    fn punctuation(&mut self, text: &str) {
        self.out.push_str(text);
        self.at += 1;
    }

    fn open_object(&mut self) {
        self.open.push(Open::Object {
            start: self.out.len(),
            outer_members: self.members.len(),
        });
        self.expects_key = true;
        self.punctuation("{");
    }

    fn open_array(&mut self) {
        self.open.push(Open::Array);
        self.expects_key = false;
        self.punctuation("[");
    }

    fn comma(&mut self) {
        if let Some(Open::Object { .. }) = self.open.last() {
            self.end_member();
            self.expects_key = true;
        }
        self.punctuation(", ");
    }

    fn close(&mut self, byte: u8) {
        if let Some(Open::Object {
            start,
            outer_members,
        }) = self.open.pop()
        {
            self.end_member();
            keep_last_of_repeated(&self.members[outer_members..], start, self.out);
            self.members.truncate(outer_members);
        }
        self.expects_key = false;
        self.punctuation(if byte == b'}' { "}" } else { "]" });
    }

    /// Notes where the innermost object's last member ends.
    fn end_member(&mut self) {
        if let Some(member) = self.members.last_mut() {
            member.end = self.out.len();
        }
    }

    fn string(&mut self) {
        let start = self.out.len();
        self.at += 1;
        self.out.push('"');
        while self.string_part() {}
        self.out.push('"');
        if self.expects_key {
            self.expects_key = false;
            self.members.push(Member {
                start,
                key_end: self.out.len(),
                end: self.out.len(),
            });
        }
    }

    /// Rewrites a run of plain characters and what ends it; false at the end of the string.
    fn string_part(&mut self) -> bool {
        let rest = &self.json[self.at..];
        let len = plain_length(rest);
        let (plain, special) = rest.split_at(len);
        self.out.push_str(plain);
        self.at += len;
        match special.chars().next() {
            None => false,
            Some('"') => {
                self.at += 1;
                false
            }
            Some('\\') => {
                self.at += write_escape(special, self.out);
                true
            }
            Some(char) => {
                write_escaped(char, self.out);
                self.at += char.len_utf8();
                true
            }
        }
    }

    fn number(&mut self) {
        let rest = &self.json[self.at..];
        let len = rest
            .bytes()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
            .unwrap_or(rest.len());
        write_number(&rest[..len], self.out);
        self.at += len;
    }

    fn word(&mut self) {
        let rest = &self.json[self.at..];
        let len = rest
            .bytes()
            .position(|byte| !byte.is_ascii_lowercase())
            .unwrap_or(rest.len());
        self.out.push_str(&rest[..len]);
        // Anything but a word is passed over, so that no input can hold the loop up.
        let passed = rest.chars().next().map_or(1, char::len_utf8);
        self.at += if len > 0 { len } else { passed };
    }
}

/// Where keys repeat among the members of the object at `start`, writes the object again up to, and
/// without, its closing brace. Two keys are the same exactly when their escaped texts are.
fn keep_last_of_repeated(members: &[Member], start: usize, out: &mut String) {
    let key = |member: &Member| &out[member.start..member.key_end];
    let repeats = if members.len() <= FEW_KEYS {
        let mut pairs = (1..members.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
        pairs.any(|(a, b)| key(&members[a]) == key(&members[b]))
    } else {
        let mut seen = HashSet::with_capacity(members.len());
        !members.iter().all(|member| seen.insert(key(member)))
    };
    if !repeats {
        return;
    }
    let last: HashMap<&str, usize> = members
        .iter()
        .enumerate()
        .map(|(index, member)| (key(member), index))
        .collect();
    let mut kept = String::with_capacity(out.len() - start);
    let mut written = HashSet::with_capacity(last.len());
    for member in members {
        let key = key(member);
        if written.insert(key)
            && let Some(last) = last.get(key).and_then(|&index| members.get(index))
        {
            if !kept.is_empty() {
                kept.push_str(", ");
            }
            kept.push_str(&out[last.start..last.end]);
        }
    }
    out.truncate(start + 1);
    out.push_str(&kept);
}

/// How many bytes at the beginning of a text stand for themselves.
fn plain_length(text: &str) -> usize {
    const STEP: usize = 16;
    let steps = text.as_bytes().chunks_exact(STEP);
    // Without a branch for each byte the compiler looks at a whole step at once.
    let is_all_plain = |step: &&[u8]| step.iter().fold(true, |all, byte| all & is_plain(*byte));
    let length = STEP * steps.take_while(is_all_plain).count();
    let rest = text.as_bytes().get(length..).unwrap_or_default();
    length + rest.iter().take_while(|byte| is_plain(**byte)).count()
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// Rewrites the escape at the start of `text`; returns its length.
fn write_escape(text: &str, out: &mut String) -> usize {
    match text.as_bytes().get(1) {
        Some(b'u') => {
            let digits = text.get(2..6).unwrap_or_default();
            match u16::from_str_radix(digits, 16) {
                Ok(unit) => {
                    write_unit(unit, out);
                    6
                }
                Err(_) => 2,
            }
        }
        Some(b'/') => {
            out.push('/');
            2
        }
        Some(byte @ (b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't')) => {
            out.push('\\');
            out.push(char::from(*byte));
            2
        }
        _ => 1,
    }
}

fn write_escaped(char: char, out: &mut String) {
    let mut units = [0; 2];
    for unit in char.encode_utf16(&mut units) {
        write_unit(*unit, out);
    }
}

fn write_unit(unit: u16, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match u8::try_from(unit) {
        Ok(b'"') => out.push_str("\\\""),
        Ok(b'\\') => out.push_str("\\\\"),
        Ok(0x08) => out.push_str("\\b"),
        Ok(0x0c) => out.push_str("\\f"),
        Ok(b'\n') => out.push_str("\\n"),
        Ok(b'\r') => out.push_str("\\r"),
        Ok(b'\t') => out.push_str("\\t"),
        Ok(byte @ b' '..=b'~') => out.push(char::from(byte)),
        _ => {
            out.push_str("\\u");
            for shift in [12, 8, 4, 0] {
                out.push(char::from(HEX[usize::from(unit >> shift & 0xf)]));
            }
        }
    }
}

fn write_number(token: &str, out: &mut String) {
    if token.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        match token.parse::<f64>() {
            Ok(number) if number.is_finite() => write_float(number, out),
            _ => out.push_str("null"),
        }
    } else if token == "-0" {
        out.push('0');
    } else {
        out.push_str(token);
    }
}

#[cfg(test)]
mod tests;
