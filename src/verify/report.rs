//! The report, for people and for programs. Ids and counts, never a message.

use chrono::{DateTime, SecondsFormat, Utc};
use event_persister_actors::store::operator::LetterCounts;
use serde_json::{Value, json};
use strum::VariantArray as _;

use super::reconciliation::{Finding, Kind, Reconciliation};
use crate::output;
use crate::wiring::ReadAgain;

pub(crate) struct Stream<'a> {
    pub(crate) stream: &'a str,
    pub(crate) group: &'a str,
    /// The fault of the group's position, and what to do about it.
    pub(crate) misplaced: Option<&'a str>,
    /// Why nothing of it could be compared.
    pub(crate) shows_nothing: Option<&'a str>,
    /// How to have everything from the first missing entry on read once more.
    pub(crate) read_again: Option<ReadAgain>,
}

pub(crate) struct Report<'a> {
    /// The database's server that was asked, where there are servers.
    pub(crate) server: Option<String>,
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) stream: Option<Stream<'a>>,
    /// Events in the table that were looked at.
    pub(crate) num_events: u64,
    pub(crate) letters: LetterCounts,
    pub(crate) state: &'a Reconciliation,
}

impl Report<'_> {
    pub(crate) fn all_is_well(&self) -> bool {
        self.state.all_is_well() && self.misplaced().is_none()
    }

    fn misplaced(&self) -> Option<&str> {
        self.stream.as_ref()?.misplaced
    }

    pub(crate) fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return output::json(&self.document());
        }
        output::table(&["WHAT", "COUNT"], &self.counts())?;
        if !self.state.findings.is_empty() {
            output::line("")?;
            output::table(
                &["WRONG", "STREAM ID", "EVENT ID", "WHAT IS THERE"],
                &self.findings(),
            )?;
        }
        for remark in self.remarks() {
            output::line(&remark)?;
        }
        if let Some(server) = &self.server {
            output::line(&format!("asked: {server}"))?;
        }
        if let Some(misplaced) = self.misplaced() {
            output::line(&format!(
                "{misplaced}. Entries that are missing behind that id are not lost: they were never read"
            ))?;
        }
        output::line(if self.all_is_well() {
            "all is well"
        } else {
            "something is wrong"
        })
    }

    fn document(&self) -> Value {
        let stream = self.stream.as_ref().map(|stream| {
            let mut document = json!(self.state.stream);
            document["stream"] = json!(stream.stream);
            document["group"] = json!(stream.group);
            if let Some(misplaced) = stream.misplaced {
                document["misplaced"] = json!(misplaced);
            }
            document
        });
        json!({
            "all_is_well": self.all_is_well(),
            "server": self.server,
            "since": self.since.map(|since| since.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            "stream": stream,
            "events": self.num_events,
            "dead_letters": self.letters.total,
            "curable": self.letters.num_curable,
            "missing": self.state.num(Kind::Missing),
            "doubled": self.state.num(Kind::Doubled),
            "half_written": self.state.num(Kind::HalfWritten),
            "differing": self.state.num(Kind::Differing),
            "unreadable": self.state.num(Kind::Unreadable),
            "findings": self.state.findings,
            "curable_letters": self.letters.curable,
            "read_again": self.read_again().map(|again| &again.command),
        })
    }

    fn counts(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let mut row = |what: &str, count: u64| rows.push(vec![what.to_owned(), count.to_string()]);
        if self.stream.is_some() {
            let counts = &self.state.stream;
            row("stream: checked", counts.checked);
            row("  stored", counts.stored);
            row("  dead letters", counts.dead_letters);
            row("  ignored (empty)", counts.ignored);
            row("  expired", counts.expired);
            row("stream: pending", counts.pending);
            row("stream: unread", counts.unread);
        }
        row("events: checked", self.num_events);
        row("dead letters: all", self.letters.total);
        row("dead letters: curable", self.letters.num_curable);
        for kind in Kind::VARIANTS {
            row(kind.as_ref(), self.state.num(*kind));
        }
        rows
    }

    fn findings(&self) -> Vec<Vec<String>> {
        let cell = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let row = |finding: &Finding| {
            vec![
                finding.kind.as_ref().to_owned(),
                cell(&finding.stream_id),
                cell(&finding.event_id),
                finding.detail.clone(),
            ]
        };
        self.state.findings.iter().map(row).collect()
    }

    fn read_again(&self) -> Option<&ReadAgain> {
        self.stream.as_ref()?.read_again.as_ref()
    }

    fn first(&self, kind: Kind) -> Option<&str> {
        let mut findings = self.state.findings.iter();
        let first = findings.find(|finding| finding.kind == kind)?;
        first.event_id.as_deref()
    }

    fn delete_first(&self, kind: Kind) -> String {
        let id = self.first(kind).unwrap_or("ID");
        format!(
            "DELETE FROM event_resources WHERE event_id = '{id}'; DELETE FROM events WHERE id = '{id}'"
        )
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let shows_nothing = self.stream.as_ref().and_then(|it| it.shows_nothing);
        remarks.extend(shows_nothing.map(str::to_owned));
        let num_more = self.state.num_faults() - self.state.findings.len() as u64;
        if num_more > 0 {
            remarks.push(format!("and {num_more} more, see --limit"));
        }
        if self.state.num(Kind::HalfWritten) > 0 {
            remarks.push(
                "half-written: a crash of Prefect's own persister leaves events without any resource, and \
                 resources without an event. `event-persister trim --remove-half-events` removes them \
                 (PostgreSQL)"
                    .to_owned(),
            );
        }
        if let Some(ReadAgain {
            command,
            while_there,
            does,
        }) = self.read_again()
        {
            remarks.push(format!(
                "missing: the entries are still in the stream, {while_there}. To have them written, run `{command}` \
                 {does}, and what is stored counts as duplicate. A dead letter that was purged is missing too"
            ));
        }
        if self.state.num(Kind::Differing) > 0 {
            remarks.push(format!(
                "differing: somebody changed the rows after they were written. To have {} written anew, \
                 delete it: `{}`. Then, while its entry is in the stream, have it read once more as missing entries \
                 are; else take it from a backup",
                self.first(Kind::Differing).unwrap_or("one"),
                self.delete_first(Kind::Differing),
            ));
        }
        if self.state.num(Kind::Unreadable) > 0 {
            remarks.push(format!(
                "unreadable: a page of Prefect's fails as a whole when it meets such an event. Save what \
                 you need of it, then remove it, such as {}: `{}`. Where only the payload is at fault: \
                 `UPDATE events SET payload = '{{}}' WHERE id = …`",
                self.first(Kind::Unreadable).unwrap_or("one"),
                self.delete_first(Kind::Unreadable),
            ));
        }
        if self.letters.num_curable > 0 {
            let ids: Vec<String> = (self.letters.curable.iter())
                .map(|letter| letter.id.to_string())
                .collect();
            remarks.push(format!(
                "curable: the events of these dead letters are stored by now; \
                 `event-persister dead-letters replay` cures them: {}",
                ids.join(" ")
            ));
        }
        remarks
    }
}

#[cfg(test)]
mod tests {
    use event_persister_actors::store::operator::CurableLetter;

    use super::*;

    fn report(state: &Reconciliation) -> Report<'_> {
        Report {
            server: None,
            since: None,
            stream: None,
            num_events: 3,
            letters: LetterCounts {
                total: 4,
                num_curable: 1,
                curable: vec![CurableLetter {
                    id: 17,
                    event_id: "e".to_owned(),
                }],
            },
            state,
        }
    }

    #[test]
    fn without_a_stream_only_the_tables_are_told_of() {
        let state = Reconciliation::new(1);
        let report = report(&state);
        assert_eq!(report.document()["stream"], Value::Null);
        assert!(
            report
                .counts()
                .iter()
                .all(|row| !row[0].starts_with("stream"))
        );
        let remarks = report.remarks();
        assert_eq!(remarks.len(), 1);
        assert!(
            remarks[0].ends_with("replay` cures them: 17"),
            "{remarks:?}"
        );
    }

    #[test]
    fn says_that_there_is_more_and_what_to_do() {
        let mut state = Reconciliation::new(1);
        state.count(Kind::Missing, 2);
        state.count(Kind::HalfWritten, 1);
        state.count(Kind::Differing, 1);
        state.count(Kind::Unreadable, 1);
        let remarks = report(&state).remarks().join("\n");
        assert!(remarks.contains("and 5 more"), "{remarks}");
        assert!(remarks.contains("--remove-half-events"), "{remarks}");
        assert!(
            remarks.contains("DELETE FROM events WHERE id = 'ID'"),
            "{remarks}"
        );
        assert!(remarks.contains("SET payload = '{}'"), "{remarks}");
        assert_eq!(report(&state).document()["all_is_well"], false);
    }

    #[test]
    fn what_is_missing_can_be_read_again() {
        let state = Reconciliation::new(1);
        let mut report = report(&state);
        assert_eq!(report.document()["read_again"], Value::Null);
        report.stream = Some(Stream {
            stream: "events",
            group: "event-persister",
            misplaced: None,
            shows_nothing: Some("nothing was compared"),
            read_again: Some(ReadAgain {
                command: "read it again".to_owned(),
                while_there: "for a while",
                does: "somewhere. All is read",
            }),
        });
        assert_eq!(report.document()["read_again"], "read it again");
        let remarks = report.remarks().join("\n");
        let expected = "in the stream, for a while. To have them written, run `read it again` somewhere. All is read, and";
        assert!(remarks.contains(expected), "{remarks}");
        assert!(remarks.starts_with("nothing was compared"), "{remarks}");
    }
}
