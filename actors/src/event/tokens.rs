//! Valid JSON, token by token, in a loop: no nesting can exhaust the stack.

use memchr::memchr2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'t> {
    /// With its quotes and escapes.
    String(&'t str),
    /// As it is written; also NaN and infinities.
    Number(&'t str),
    /// One byte of anything else.
    Other(u8),
}

pub(crate) struct Tokens<'t> {
    json: &'t str,
    offset: usize,
}

impl<'t> Tokens<'t> {
    pub(crate) fn new(json: &'t str) -> Self {
        Self { json, offset: 0 }
    }

    fn part(&self, start: usize, end: usize) -> &'t str {
        let end = end.min(self.json.len());
        self.json.get(start..end).unwrap_or_default()
    }

    /// The offset behind the closing quote of the string whose content starts at `offset`.
    fn end_of_string(&self, mut offset: usize) -> usize {
        loop {
            let rest = self.json.as_bytes().get(offset..).unwrap_or_default();
            let Some(length) = memchr2(b'"', b'\\', rest) else {
                return self.json.len();
            };
            match rest.get(length) {
                Some(b'\\') => offset += length + 2,
                _ => return offset + length + 1,
            }
        }
    }

    fn end_of_number(&self, offset: usize) -> usize {
        let rest = self.json.as_bytes().get(offset..).unwrap_or_default();
        let length = match rest {
            [b'N', ..] => "NaN".len(),
            [b'I', ..] => "Infinity".len(),
            [b'-', b'I', ..] => "-Infinity".len(),
            _ => {
                let end = rest.iter().position(|byte| !is_of_number(*byte));
                end.unwrap_or(rest.len())
            }
        };
        offset + length
    }
}

fn is_of_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')
}

impl<'t> Iterator for Tokens<'t> {
    type Item = (usize, Token<'t>);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.offset;
        let byte = *self.json.as_bytes().get(start)?;
        let token = match byte {
            b'"' => {
                self.offset = self.end_of_string(start + 1);
                Token::String(self.part(start, self.offset))
            }
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                self.offset = self.end_of_number(start);
                Token::Number(self.part(start, self.offset))
            }
            _ => {
                self.offset = start + 1;
                Token::Other(byte)
            }
        };
        Some((start, token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_numbers_are_whole_and_nothing_else_is() {
        let json = "{\"a\\\"1\":[-1.5e+3,NaN,-Infinity ,Infinity],\"\":true}";
        let tokens: Vec<_> = Tokens::new(json).map(|(_, token)| token).collect();
        let numbers = ["-1.5e+3", "NaN", "-Infinity", "Infinity"];
        let is_number = |token: &&Token<'_>| matches!(token, Token::Number(_));
        let found = tokens.iter().filter(is_number).copied();
        assert!(found.eq(numbers.map(Token::Number)));
        let strings = ["\"a\\\"1\"", "\"\""];
        let is_string = |token: &&Token<'_>| matches!(token, Token::String(_));
        let found = tokens.iter().filter(is_string).copied();
        assert!(found.eq(strings.map(Token::String)));
        assert_eq!(tokens[0], Token::Other(b'{'));
        assert_eq!(tokens.len(), 21);
    }

    #[test]
    fn what_ends_in_the_middle_ends() {
        for json in ["\"a", "\"a\\", "-", "1e", "N", "-I", "I"] {
            assert_eq!(Tokens::new(json).count(), 1, "{json}");
        }
    }
}
