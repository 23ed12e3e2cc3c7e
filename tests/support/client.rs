//! JSON over HTTP, with every status an answer.

use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;
use ureq::http::{Request, Response};

/// A client of one server; clones share connections.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    base: String,
    key: Option<String>,
}

/// Status, body and the header that refusals carry.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as JSON; a string when it is not JSON.
    pub body: Value,
    /// `Retry-After`, seconds.
    pub retry_after: Option<u64>,
    /// `x-qrm-prefix`.
    pub prefix: Option<String>,
}

impl Answer {
    /// Asserts success and gives the body.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Asserts a refusal in the one error shape and gives `(code, param)`.
    pub fn refused(self, status: u16) -> (String, Option<String>) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.body["error"];
        assert!(error["type"].is_string() && error["message"].is_string(), "{}", self.body);
        let param = error["param"].as_str().map(str::to_owned);
        assert!(param.is_some() || error["param"].is_null(), "{}", self.body);
        (error["code"].as_str().expect("a code").to_owned(), param)
    }
}

impl Client {
    pub(crate) fn new(address: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .max_idle_connections_per_host(64)
            .max_idle_age(Duration::from_secs(1)) // before the server lets go of it
            .build();
        Self { agent: config.into(), base: format!("http://{address}"), key: None }
    }

    /// The same with an API key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(format!("Bearer {key}")), ..self.clone() }
    }

    /// `POST /v1/rewards`.
    pub fn rewards(&self, body: &Value) -> Answer {
        self.post("/v1/rewards", body)
    }

    /// `POST` of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &[])
    }

    /// Anything; panics when no answer comes.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// Anything; the error is the connection's.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let request = request.body(body.to_vec()).expect("a valid request");
        let mut response: Response<ureq::Body> = self.agent.run(request)?;
        let retry_after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let prefix = response.headers().get("x-qrm-prefix").and_then(|v| Some(v.to_str().ok()?.to_owned()));
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status: response.status().as_u16(), body, retry_after, prefix })
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").ok();
        let value =
            text.as_str().expect("text").lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// Waits until a metric is what it should be; panics when it does not come to that within a minute.
    pub fn until(&self, name: &str, is_so: impl Fn(f64) -> bool) {
        let start = Instant::now();
        loop {
            let value = self.metric(name);
            if is_so(value) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{name} stays {value}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
