//! The page, in a real browser. `QRM_SCREENSHOTS=DIR` keeps what it looked like.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use qrm_tests::{Browser, Server, fixture};
use serde_json::{Value, json};

/// Where there is no browser there is nothing to see, unless `QRM_TEST_BROWSER` says that there has to be one.
fn browser() -> Option<Browser> {
    match Browser::installed() {
        Some(path) => Some(Browser::start(&path, 1280, 1400)),
        None => {
            assert!(std::env::var_os("QRM_TEST_BROWSER").is_none(), "no chromium is installed");
            eprintln!("no chromium is installed: the page is not looked at");
            None
        }
    }
}

fn keep(browser: &mut Browser, name: &str) {
    let image = browser.screenshot();
    if let Ok(dir) = std::env::var("QRM_SCREENSHOTS") {
        let bytes = BASE64_STANDARD.decode(image).expect("base64");
        std::fs::write(Path::new(&dir).join(format!("{name}.png")), bytes).expect("written");
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

/// No error in the console, nothing loaded from elsewhere.
fn is_clean(browser: &mut Browser, origin: &str) {
    for event in browser.events("Network.requestWillBeSent") {
        let url = event["request"]["url"].as_str().expect("an address");
        assert!(url.starts_with(origin) || url.starts_with("data:"), "a request to {url}");
    }
    assert_eq!(browser.events("Runtime.exceptionThrown"), [] as [&Value; 0]);
    for event in browser.events("Log.entryAdded") {
        // A refusal that the test provokes is logged as a failed request.
        assert!(event["entry"]["source"] == "network", "in the console: {event}");
    }
}

#[test]
fn a_wrong_answer_is_seen() {
    let Some(mut browser) = browser() else { return };
    let server = Server::start_without_model(&[]);
    let origin = format!("http://{}", server.address());
    browser.open(&origin);
    browser.until("document.getElementById('about').textContent.includes('q_vocab')");
    assert_eq!(browser.value("document.querySelectorAll('#answers textarea').length"), 2);
    // The example, by keyboard alone.
    browser.value("document.getElementById('prompt').focus()");
    browser.press("Enter", 13, true);
    browser.until("!document.getElementById('result').hidden");
    // The digit where the carry was lost is what is marked.
    let marked = browser
        .value("[...document.querySelectorAll('.token.lowest')].map(t => t.getAttribute('aria-label'))");
    let marked = strings(&marked);
    let reward = marked[1].strip_prefix("3, reward −").and_then(|rest| rest.strip_suffix(", the lowest"));
    assert!(reward.is_some_and(|nats| nats.parse::<f64>().is_ok_and(|nats| nats > 5.0)), "{marked:?}");
    assert_eq!(browser.value("document.querySelectorAll('.card.best h2').length"), 1);
    let best = browser.value("document.querySelector('.card.best h2').textContent");
    assert!(best.as_str().expect("text").starts_with("Answer A"), "{best}");
    // Its colour is another than its neighbours', with a readable text.
    let colour = "(t => getComputedStyle(t).backgroundColor)";
    let lowest = browser.value(&format!("{colour}(document.querySelectorAll('.token.lowest')[1])"));
    let first = browser
        .value(&format!("{colour}(document.querySelectorAll('.card')[1].querySelectorAll('.token')[3])"));
    assert_ne!(lowest, first);
    for theme in ["light", "dark"] {
        let other = browser.value("document.documentElement.dataset.theme") != theme;
        if other {
            browser.value("document.getElementById('theme').click()");
        }
        let contrast = browser.value(CONTRAST).as_f64().expect("a number");
        assert!(contrast >= 4.5, "text on tokens has a contrast of {contrast} in {theme}");
        keep(&mut browser, theme);
    }
    browser.value("document.querySelector('input[name=scale][value=raw]').click()");
    keep(&mut browser, "raw");
    let raw = browser
        .value(&format!("{colour}(document.querySelectorAll('.card')[1].querySelectorAll('.token')[3])"));
    assert_ne!(raw, first, "the other scale has other colours");
    // Walking through the tokens says what each is.
    browser.value("document.querySelector('.card .token').focus()");
    for _ in 0..4 {
        browser.press("ArrowRight", 39, false);
    }
    let detail = browser.value("document.getElementById('detail').textContent");
    let detail = detail.as_str().expect("text");
    for word in ["A, token 5 of", "reward", "logit", "logsumexp", "entropy"] {
        assert!(detail.contains(word), "{detail}");
    }
    assert_eq!(browser.value("document.querySelectorAll('#tables tbody').length"), 2);
    assert_eq!(browser.value("document.querySelectorAll('#curve polyline').length"), 2);
    // What is copied as curl is the request that was sent.
    browser.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }");
    browser.value("document.getElementById('copy-curl').click()");
    browser.until("document.getElementById('copied').textContent === 'curl copied'");
    let curl = browser.value("window.copied");
    let curl = curl.as_str().expect("text");
    let body = curl.split_once(" -d '").expect("a body").1.trim_end_matches('\'');
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["inputs"][0]["responses"].as_array().expect("answers").len(), 2);
    server.client().rewards(&body).ok();
    is_clean(&mut browser, &origin);
    browser.open(&format!("{origin}/docs"));
    browser.until("document.querySelectorAll('.route').length > 10");
    browser.value("document.querySelector('.route summary').click()");
    keep(&mut browser, "docs");
    is_clean(&mut browser, &origin);
    server.assert_quiet();
}

/// The least contrast (WCAG) of a token's text against its colour.
const CONTRAST: &str = "Math.min(...[...document.querySelectorAll('.token')].map((token) => {
    const light = (css) => css.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const style = getComputedStyle(token);
    const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}))";

#[test]
fn mistakes_and_keys() {
    let Some(mut browser) = browser() else { return };
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), "alice secret").expect("written");
    let flags = ["--api-key-file", keys.path().to_str().expect("UTF-8")];
    let server = Server::start(&fixture("llama-sequence-classification"), &flags);
    let origin = format!("http://{}", server.address());
    browser.open(&origin);
    browser.until("document.getElementById('about').textContent.includes('asks for an API key')");
    let problem = "document.getElementById('problem').textContent";
    browser.value("document.getElementById('score').click()");
    browser.until(&format!("{problem}.includes('a valid key is needed')"));
    browser.value(
        "(key => { key.value = 'secret'; key.dispatchEvent(new Event('change')); })(document.getElementById('key'))",
    );
    browser.until("document.getElementById('about').textContent.includes('outcome')");
    // A model whose only number is the last token's, and characters of many bytes.
    browser.value("document.querySelector('input[name=kind][value=prompt]').click()");
    browser
        .value("document.querySelectorAll('#answers textarea')[0].value = 'naïve 日本語 🙂\\n<b>&amp;</b>'");
    browser.value("document.querySelectorAll('#answers textarea')[1].value = ''");
    browser.value("document.getElementById('score').click()");
    browser.until(&format!("{problem}.startsWith('Answer B: ')"));
    assert_eq!(
        browser.value("document.querySelectorAll('#answers textarea')[1].getAttribute('aria-invalid')"),
        "true"
    );
    keep(&mut browser, "mistake");
    browser.value("document.querySelectorAll('.answer button')[1].click()");
    browser.value("document.getElementById('score').click()");
    browser.until("!document.getElementById('result').hidden");
    assert_eq!(browser.value(problem), "");
    let shown = browser.value("[...document.querySelectorAll('.token')].map(t => t.textContent).join('')");
    let shown = shown.as_str().expect("text");
    assert!(shown.contains("<b>&amp;</b>"), "as text, not as HTML: {shown}");
    // The key goes into no address, and into no copy.
    browser.value("navigator.clipboard.writeText = async (text) => { window.copied = text; }");
    browser.value("document.getElementById('copy-curl').click()");
    browser.until("document.getElementById('copied').textContent !== ''");
    let curl = browser.value("window.copied");
    assert!(!curl.as_str().expect("text").contains("secret"), "{curl}");
    is_clean(&mut browser, &origin);
    assert_eq!(
        json!(browser.events("Network.requestWillBeSent")).to_string().matches("key=secret").count(),
        0
    );
}
