//! The page that people look at, served from the binary. It asks nobody but us, which its policy makes sure of.

use std::borrow::Cow;
use std::sync::LazyLock;

use actix_web::http::StatusCode;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use event_persister_actors::health::read_only;
use sha2::{Digest as _, Sha256};

/// Scripts and styles of our own alone: files of this origin, and what stands in the page itself for the first paint.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; script-src 'self' 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(THEME),
        hash(STYLE)
    )
});

const SCRIPT: &str = "text/javascript; charset=utf-8";

struct Asset {
    name: &'static str,
    kind: &'static str,
    text: Cow<'static, str>,
}

macro_rules! scripts {
    ($($name:literal)*) => { [$(Asset {
        name: concat!($name, ".js"),
        kind: SCRIPT,
        text: Cow::Borrowed(include_str!(concat!("page/", $name, ".js"))),
    }),*] };
}

static SCRIPTS: [Asset; 17] = scripts! {
    "address" "api" "detail" "dialogs" "dom" "empty" "events" "flow" "format" "histogram" "json" "letters"
    "list" "live" "main" "names" "service"
};

const STYLE: &str = include_str!("page/page.css");
const THEME: &str = include_str!("page/theme.js");

/// The page, with all that its first paint needs: nothing else is waited for.
static INDEX: LazyLock<Asset> = LazyLock::new(|| {
    let page = include_str!("page/index.html")
        .replace(STYLE_LINK, &format!("<style>{STYLE}</style>"))
        .replace(THEME_LINK, &format!("<script>{THEME}</script>"));
    Asset {
        name: "index.html",
        kind: "text/html; charset=utf-8",
        text: page.into(),
    }
});

const STYLE_LINK: &str = r#"<link rel="stylesheet" href="page/page.css">"#;
const THEME_LINK: &str = r#"<script src="page/theme.js"></script>"#;

/// Mounts the page and its parts.
pub(super) fn configure(config: &mut web::ServiceConfig) {
    let index = web::to(|request: HttpRequest| async move { INDEX.answer(&request) });
    config.service(read_only("/", index));
    for asset in &SCRIPTS {
        let route = web::to(move |request: HttpRequest| async move { asset.answer(&request) });
        config.service(read_only(&format!("/page/{}", asset.name), route));
    }
}

impl Asset {
    fn answer(&'static self, request: &HttpRequest) -> HttpResponse {
        let tag = self.tag();
        let known = request.headers().get(IF_NONE_MATCH);
        let is_known = known
            .and_then(|known| known.to_str().ok())
            .is_some_and(|known| known == tag);
        let mut answer = HttpResponse::build(if is_known {
            StatusCode::NOT_MODIFIED
        } else {
            StatusCode::OK
        });
        answer
            .content_type(self.kind)
            // Another version of this program has another page.
            .insert_header((CACHE_CONTROL, "no-cache"))
            .insert_header((ETAG, tag))
            .insert_header((CONTENT_SECURITY_POLICY, POLICY.as_str()))
            .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((X_FRAME_OPTIONS, "DENY"))
            .insert_header((REFERRER_POLICY, "no-referrer"));
        if is_known {
            answer.finish()
        } else {
            answer.body(&*self.text)
        }
    }

    /// A name for what it holds.
    fn tag(&self) -> String {
        // FNV-1a: nobody gains by two texts of one name.
        let hash = self
            .text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("\"{hash:016x}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_what_is_served_and_all_of_it_is_small() {
        let mut num_bytes = INDEX.text.len();
        for script in &SCRIPTS {
            num_bytes += script.text.len();
            let name = format!("\"page/{}\"", script.name);
            assert!(INDEX.text.contains(&name), "{name}");
            for import in script.text.split("from \"./").skip(1) {
                let name = import.split('"').next().unwrap();
                assert!(SCRIPTS.iter().any(|script| script.name == name), "{name}");
            }
        }
        assert!(num_bytes < 200_000, "{num_bytes}");
        assert_eq!(INDEX.text.matches("\"page/").count(), SCRIPTS.len());
    }
}
