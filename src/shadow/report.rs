//! What the shadow has seen, for people and for programs. Ids and counts, never a message.

use std::time::Duration;

use serde_json::{Value, json};
use strum::VariantArray as _;

use super::tally::{Class, Finding, Tally};
use crate::output;

pub(crate) struct Report<'a> {
    pub(crate) stream: &'a str,
    pub(crate) group: &'a str,
    pub(crate) lasted: Duration,
    pub(crate) tally: &'a Tally,
}

impl Report<'_> {
    pub(crate) fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return output::json(&self.document());
        }
        output::table(&["WHAT", "COUNT"], &self.counts())?;
        if !self.tally.findings.is_empty() {
            output::line("")?;
            let header = ["CLASS", "STREAM ID", "EVENT ID", "DETAIL"];
            output::table(&header, &self.findings())?;
        }
        for remark in self.remarks() {
            output::line(&remark)?;
        }
        Ok(())
    }

    fn document(&self) -> Value {
        let classes = Class::VARIANTS.iter();
        let counts: serde_json::Map<String, Value> = classes
            .map(|class| (class.as_ref().to_owned(), self.tally.count(*class).into()))
            .collect();
        json!({
            "all_is_well": self.tally.is_well(),
            "stream": self.stream,
            "group": self.group,
            "seconds": self.lasted.as_secs(),
            "compared": self.tally.num_compared(),
            "classes": counts,
            "differing_columns": self.tally.columns,
            "findings": self.tally.findings,
        })
    }

    fn counts(&self) -> Vec<Vec<String>> {
        let row = |what: &str, count: u64| vec![what.to_owned(), count.to_string()];
        let mut rows = vec![row("compared", self.tally.num_compared())];
        let classes = Class::VARIANTS.iter();
        rows.extend(classes.map(|class| row(describe(*class), self.tally.count(*class))));
        rows
    }

    fn findings(&self) -> Vec<Vec<String>> {
        let row = |finding: &Finding| {
            vec![
                finding.class.as_ref().to_owned(),
                finding.stream_id.clone(),
                finding.event_id.clone().unwrap_or_else(|| "-".to_owned()),
                output::one_line(&finding.detail()),
            ]
        };
        self.tally.findings.iter().map(row).collect()
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if !self.tally.columns.is_empty() {
            let columns = self.tally.columns.iter();
            let columns: Vec<String> = columns
                .map(|(column, count)| format!("{column} {count}"))
                .collect();
            remarks.push(format!("columns that differ: {}", columns.join(", ")));
        }
        let num_lost = self.tally.count(Class::LostByPrefect);
        if num_lost > 0 {
            remarks.push(format!(
                "Prefect's persister acknowledged {num_lost} events that are not in the database"
            ));
        }
        if self.tally.num_compared() == 0 {
            remarks.push("nothing was compared: no event was acknowledged meanwhile".to_owned());
        } else if self.tally.is_well() {
            remarks.push(
                "nothing speaks against taking its place: what Prefect stored would be the same here"
                    .to_owned(),
            );
        } else {
            remarks.push("what Prefect stored would not all be the same here".to_owned());
        }
        remarks
    }
}

fn describe(class: Class) -> &'static str {
    match class {
        Class::Identical => "  identical",
        Class::Differing => "  differing",
        Class::LostByPrefect => "  lost by Prefect",
        Class::RefusedByBoth => "  refused by both",
        Class::RefusedOnlyByUs => "  stored by Prefect, refused here",
        Class::Duplicate => "  duplicates",
        Class::Expired => "  expired",
        Class::Unclear => "  absent, may be refused here",
        Class::Ignored => "ignored (empty)",
        Class::Trimmed => "not compared: trimmed before they were read",
        Class::Unacknowledged => "not compared: never acknowledged",
        Class::Unfinished => "not compared: the end came first",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(tally: &Tally) -> Report<'_> {
        Report {
            stream: "events",
            group: "event-persister",
            lasted: Duration::from_secs(61),
            tally,
        }
    }

    #[test]
    fn tells_every_class_and_what_it_means() {
        let mut tally = Tally::new(3);
        assert!(report(&tally).remarks()[0].contains("nothing was compared"));
        tally.add(Class::Identical, 7);
        tally.add(Class::LostByPrefect, 2);
        tally.add(Class::Trimmed, 5);
        let document = report(&tally).document();
        assert_eq!(document["compared"], 9);
        assert_eq!(document["classes"]["lost_by_prefect"], 2);
        assert_eq!(document["classes"]["trimmed"], 5);
        assert_eq!(document["all_is_well"], true);
        let counts = report(&tally).counts();
        assert_eq!(counts.len(), 1 + Class::VARIANTS.len());
        let remarks = report(&tally).remarks().join("\n");
        assert!(
            remarks.contains("acknowledged 2 events that are not"),
            "{remarks}"
        );
        assert!(remarks.contains("nothing speaks against"), "{remarks}");
        tally.add(Class::Differing, 1);
        let remarks = report(&tally).remarks().join("\n");
        assert!(remarks.contains("would not all be the same"), "{remarks}");
    }
}
