//! The command `health`: asks the service on this machine how it is.

use std::time::Duration;

use crate::config::Config;
use crate::http::client::{Answer, Question, reachable};
use crate::http::{Listen, ListenAddress};
use crate::output;

/// Asks, and prints one line; whether all is well.
pub(crate) async fn run(config: &Config, ready: bool, timeout: Duration) -> anyhow::Result<bool> {
    let question = if ready {
        Question::Ready
    } else {
        Question::Health
    };
    let asked = actix_rt::time::timeout(timeout, ask(config, question)).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
    let (Ok(line) | Err(line)) = &asked;
    output::line(&output::one_line(line))?;
    Ok(asked.is_ok())
}

async fn ask(config: &Config, question: Question) -> Result<String, String> {
    let Listen::At(address) = &config.http.listener.listen else {
        return Err("http.listen is off, so there is nobody to ask".to_owned());
    };
    let address = address.clone();
    // Looking a name up blocks, and must not outlast the time-out.
    let place = tokio::task::spawn_blocking(move || ListenAddress::resolve(&address)).await;
    let place = place
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("{error:#}"))?;
    let encrypted = config.http.listener.certificate().is_some();
    let scheme = if encrypted { "https" } else { "http" };
    let mut failure = String::new();
    for at in place.addresses.into_iter().flat_map(reachable) {
        let url = format!("{scheme}://{at}{}", question.path());
        match question.ask(at, encrypted).await {
            Ok(answer) => return judge(question, answer, &url),
            Err(error) => failure = format!("{url} does not answer: {error}"),
        }
    }
    Err(failure)
}

fn judge(question: Question, answer: Answer, url: &str) -> Result<String, String> {
    match (question, answer) {
        (Question::Health, Answer::Yes) => Ok(format!("alive: {url}")),
        (Question::Ready, Answer::Yes) => Ok(format!("ready: {url}")),
        (_, Answer::No(Some(reason))) => Err(format!("not ready: {reason}")),
        (_, Answer::No(None)) => Err("not ready".to_owned()),
        (_, Answer::Foreign) => Err(format!(
            "{url} was answered by something else than an event-persister with these settings"
        )),
    }
}
