//! `orgstream web` as a process, and a visitor with a cookie of its own.

use std::collections::BTreeMap;

use reqwest::{RequestBuilder, Response, StatusCode};

use super::{Daemon, Store, eventually};

/// What opens it.
pub(crate) const TOKEN: &str = "a token that no page shows";

/// The status page of a store.
pub(crate) struct Web {
    pub(crate) daemon: Daemon,
    pub(crate) url: String,
    http: reqwest::Client,
}

impl Web {
    /// Starts it, with this configuration beside the store, and waits until it listens.
    pub(crate) async fn start(store: &Store, config: &str) -> Self {
        Self::start_with(store, config, &[]).await
    }

    /// With further variables.
    pub(crate) async fn start_with(
        store: &Store,
        config: &str,
        more: &[(&'static str, &str)],
    ) -> Self {
        let mut env = BTreeMap::from([
            ("DATABASE_URL", store.url.clone()),
            ("ORGSTREAM_WEB_TOKEN", TOKEN.to_owned()),
            ("ORGSTREAM_WEB_ADDR", "127.0.0.1:0".to_owned()),
            ("DYNO", "web.1".to_owned()),
        ]);
        // Where SQLite is meant, this is no dyno.
        if store.url.starts_with("sqlite") {
            env.remove("DYNO");
        }
        env.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let daemon = Daemon::command(&["web"], config, &env);
        let line = daemon.logged(&["status page served"]).await;
        let mut fields = line.split_whitespace();
        let addr = fields
            .find_map(|field| field.strip_prefix("addr="))
            .unwrap();
        // What a redirect says is for the test to see.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self {
            url: format!("http://{addr}"),
            daemon,
            http,
        }
    }

    /// A request without credentials.
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.url))
    }

    /// A form without credentials.
    pub(crate) fn post(&self, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).form(fields)
    }

    /// Signs in at the form.
    pub(crate) async fn sign_in(&self) -> Visit<'_> {
        let answer = self
            .post("/sign-in", &[("token", TOKEN), ("next", "/")])
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        assert_eq!(answer.headers()["location"], "/");
        let set = answer.headers()["set-cookie"].to_str().unwrap();
        assert!(set.contains("HttpOnly; SameSite=Strict"), "{set}");
        assert!(!set.contains(TOKEN), "{set}");
        let cookie = set.split(';').next().unwrap().to_owned();
        Visit { web: self, cookie }
    }

    /// The metrics, with the token as a scraper gives it.
    pub(crate) async fn metrics(&self) -> String {
        let answer = self
            .get("/metrics")
            .bearer_auth(TOKEN)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.text().await.unwrap()
    }

    /// Waits until the metrics are as the test wants them.
    pub(crate) async fn metrics_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        eventually(what, async || {
            Some(self.metrics().await).filter(|text| wanted(text))
        })
        .await
    }
}

/// Somebody who is signed in.
pub(crate) struct Visit<'a> {
    web: &'a Web,
    pub(crate) cookie: String,
}

impl Visit<'_> {
    /// A page.
    pub(crate) async fn page(&self, path: &str) -> String {
        let answer = self.answer(path).await;
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        text
    }

    /// A page, or what there is instead.
    pub(crate) async fn answer(&self, path: &str) -> Response {
        let request = self.web.get(path).header("cookie", &self.cookie);
        request.send().await.unwrap()
    }

    /// Waits until a page says this.
    pub(crate) async fn page_says(&self, path: &str, text: &str) -> String {
        eventually(&format!("{path} to say {text:?}"), async || {
            Some(self.page(path).await).filter(|page| page.contains(text))
        })
        .await
    }

    /// Loads a page with a form, and sends that form as the page has it.
    pub(crate) async fn press(&self, path: &str, action: &str) -> Response {
        let page = self.page(path).await;
        let form = form(&page, action);
        let fields: Vec<(&str, &str)> =
            form.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        self.post(action, &fields).await
    }

    /// Sends a form.
    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        let request = self.web.post(path, fields).header("cookie", &self.cookie);
        let request = request.header("sec-fetch-site", "same-origin");
        request.send().await.unwrap()
    }
}

/// A store with its tables, which nobody runs on.
pub(crate) async fn quiet_store() -> Store {
    let store = Store::sqlite();
    let env = BTreeMap::from([("DATABASE_URL", store.url.clone())]);
    let (code, _, said) = Daemon::output(&["migrate"], "", &env).await;
    assert_eq!(code, 0, "{said}");
    store
}

/// The hidden fields of a page's form.
pub(crate) fn form(page: &str, action: &str) -> Vec<(String, String)> {
    let start = page
        .find(&format!("action=\"{action}\""))
        .unwrap_or_else(|| panic!("no form for {action} in {page}"));
    let form = page[start..].split("</form>").next().unwrap();
    let attribute = |input: &str, name: &str| {
        let value = input
            .split(&format!("{name}=\""))
            .nth(1)?
            .split('"')
            .next()?;
        Some(value.to_owned())
    };
    form.split("<input type=\"hidden\"")
        .skip(1)
        .filter_map(|input| Some((attribute(input, "name")?, attribute(input, "value")?)))
        .collect()
}
