//! A search for words: `one other` finds either, `+this` must be there, `-that` and `!that` must not, and quotes
//! hold a phrase together. Letters of any case are the same.

/// The terms of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TextQuery {
    /// One of these is there.
    pub(crate) include: Vec<String>,
    /// None of these is there.
    pub(crate) exclude: Vec<String>,
    /// All of these are there.
    pub(crate) required: Vec<String>,
}

impl TextQuery {
    pub(crate) fn parse(query: &str) -> Self {
        let mut parsed = Self::default();
        let mut rest = query;
        loop {
            rest = rest.trim_start_matches(is_space);
            let Some(first) = rest.chars().next() else {
                return parsed;
            };
            let mut sign = None;
            if matches!(first, '-' | '!' | '+') {
                rest = &rest[1..];
                // One that stands alone means nothing.
                if rest.chars().next().is_none_or(is_space) {
                    continue;
                }
                sign = Some(first);
            }
            let term = match rest.strip_prefix('"') {
                Some(phrase) => {
                    let (phrase, behind) = cut_phrase(phrase);
                    rest = behind;
                    let phrase = unescaped(phrase);
                    if phrase.chars().all(is_space) {
                        continue;
                    }
                    phrase
                }
                None => {
                    let is_end = |c| is_space(c) || c == '"';
                    let (term, behind) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
                    rest = behind;
                    term.to_owned()
                }
            };
            let terms = match sign {
                None => &mut parsed.include,
                Some('+') => &mut parsed.required,
                Some(_) => &mut parsed.exclude,
            };
            terms.push(term);
        }
    }
}

/// As Python sees it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The phrase up to its closing quote, or to the end where there is none, and what comes behind it.
fn cut_phrase(text: &str) -> (&str, &str) {
    let mut chars = text.char_indices();
    while let Some((place, c)) = chars.next() {
        match c {
            '"' => return (&text[..place], &text[place + 1..]),
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    (text, "")
}

/// Without the backslashes before quotes and backslashes.
fn unescaped(phrase: &str) -> String {
    let mut out = String::with_capacity(phrase.len());
    let mut chars = phrase.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(&next @ ('"' | '\\'))) => {
                chars.next();
                out.push(next);
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(query: &str) -> [Vec<String>; 3] {
        let TextQuery {
            include,
            exclude,
            required,
        } = TextQuery::parse(query);
        [include, exclude, required]
    }

    #[test]
    fn signs_and_quotes_mean_something_and_the_rest_does_not() {
        let none: [&str; 0] = [];
        for (query, include, exclude, required) in [
            ("", &none[..], &none[..], &none[..]),
            ("one  other", &["one", "other"], &[], &[]),
            ("-a !b +c d", &["d"], &["a", "b"], &["c"]),
            ("- a + b ! -", &["a", "b"], &[], &[]),
            ("--a -+b", &[], &["-a", "+b"], &[]),
            (
                r#""a phrase" -"other one""#,
                &["a phrase"],
                &["other one"],
                &[],
            ),
            (r#""open to the end"#, &["open to the end"], &[], &[]),
            (r#""say \"hi\" \\ \n""#, &[r#"say "hi" \ \n"#], &[], &[]),
            (r#"a"b c"d"#, &["a", "b c", "d"], &[], &[]),
            (r#""" "  " x"#, &["x"], &[], &[]),
            (r#""ends in \"#, &[r"ends in \"], &[], &[]),
        ] {
            assert_eq!(parts(query), [include, exclude, required], "{query}");
        }
    }
}
