//! The sentinels: whether they are there, agree, and can replace a master that fails.

use redis::RedisResult;

use crate::finding::Finding;
use crate::source::redis::sentinel::Answer;
use crate::source::redis::url::host_with_port;

const ID: &str = "redis.sentinels";

/// What they have answered says; there is at least one.
pub(super) fn judge(asked: &[(String, RedisResult<Answer>)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let answers: Vec<(&str, &Answer)> = asked
        .iter()
        .filter_map(|(who, answer)| Some((who.as_str(), answer.as_ref().ok()?)))
        .collect();
    for (who, answer) in asked {
        if let Err(error) = answer {
            findings.push(Finding::warning(
                ID,
                format!("the sentinel {who} does not say who the master is ({error})"),
                "start it, or take it out of the URL; its login is sentinel_username and sentinel_password in the URL",
            ));
        }
    }
    let Some((_, first)) = answers.first() else {
        return findings;
    };
    let named = |answer: &Answer| host_with_port(&answer.host, answer.port);
    if answers
        .iter()
        .any(|(_, answer)| named(answer) != named(first))
    {
        let said = answers.iter();
        let said: Vec<String> = said
            .map(|(who, answer)| format!("{who}: {}", named(answer)))
            .collect();
        findings.push(Finding::warning(
            ID,
            format!("the sentinels name different masters ({})", said.join(", ")),
            "if it lasts for more than a minute, see whether one of them is cut off: SENTINEL CKQUORUM",
        ));
    }
    let num = answers
        .iter()
        .map(|(_, answer)| answer.num_others + 1)
        .max()
        .unwrap_or(1);
    let quorum = answers
        .iter()
        .map(|(_, answer)| answer.quorum)
        .min()
        .unwrap_or_default();
    if num < 3 {
        findings.push(Finding::warning(
            ID,
            format!(
                "{num} sentinels watch the master: when one machine fails there may be no failover"
            ),
            "run three, each on a machine of its own",
        ));
    } else if quorum < 2 || quorum > num {
        findings.push(Finding::warning(
            ID,
            format!("a quorum of {quorum} among {num} sentinels"),
            "with 1 a single one that is cut off calls the master down, with more than there are nobody does: \
             SENTINEL SET … quorum",
        ));
    }
    if findings.is_empty() {
        let what = format!("{num} sentinels name the master {}", named(first));
        findings.push(Finding::ok(ID, what));
    }
    findings
}

/// A master that is cut off from its replicas goes on taking events, and they are lost with it.
pub(super) fn judge_master(info: &str) -> Finding {
    const ID: &str = "redis.min_replicas";
    // Only where it is set.
    if info.contains("min_slaves_good_slaves") {
        return Finding::ok(ID, "a master without replicas takes no events");
    }
    Finding::warning(
        ID,
        "the master takes events though no replica gets them: in a failover these are lost",
        "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10 on master and replicas, and the same in \
         their files",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::redis::failure::timed_out;

    fn says(port: u16, quorum: usize, num_others: usize) -> (String, RedisResult<Answer>) {
        let answer = Answer {
            config_epoch: 1,
            host: "h".to_owned(),
            port,
            quorum,
            num_others,
        };
        ("s".to_owned(), Ok(answer))
    }

    #[test]
    fn tells_of_what_hinders_a_failover() {
        let told = |asked: &[_]| {
            let findings = judge(asked);
            assert!(findings.iter().all(|finding| finding.id == ID));
            findings
                .into_iter()
                .map(|finding| finding.what)
                .collect::<Vec<_>>()
                .join("; ")
        };
        assert_eq!(
            told(&[says(1, 2, 2), says(1, 2, 2)]),
            "3 sentinels name the master h:1"
        );
        assert!(told(&[says(1, 2, 2), says(2, 2, 2)]).contains("different masters"));
        assert!(told(&[says(1, 1, 0)]).contains("1 sentinels watch"));
        assert!(told(&[says(1, 1, 2)]).contains("a quorum of 1 among 3"));
        let away = ("gone:1".to_owned(), Err(timed_out("it says nothing")));
        assert!(told(&[says(1, 2, 2), away]).contains("the sentinel gone:1 does not say"));
    }
}
