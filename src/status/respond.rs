//! What the status page answers to a request. Pure.
//!
//! Takes the head of a request and gives the answer. Keeps nothing, and looks at nothing before the method,
//! the name, the page that asks and the login are right.
//!
//! **Invariant (I35):** without the token nothing but `/healthz` is answered beyond loopback; and on
//! loopback nothing is answered to a name that is not ours, so that a web page cannot read it (rebinding),
//! nor to another web page by our name.

use core::net::IpAddr;

use aws_lc_rs::constant_time;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{
        ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN,
        REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
    request::Parts,
};
use http_body_util::Full;

use super::page;
use crate::{
    config::Secret,
    telemetry::{metrics, process::Usage, report::Report},
};

/// Who may read.
#[derive(Debug)]
pub(super) struct Access {
    /// What a login needs; `None` where none is needed.
    pub(super) token: Option<Secret>,
    /// Names that the box goes by, lowercase.
    pub(super) hosts: Vec<String>,
}

/// What the answer is made of, when it is asked for.
pub(super) trait Sight {
    /// Whether all is well, or heals without a person.
    fn healthy(&self) -> bool;

    /// All as it is now; as large as the lists of tables.
    fn report(&self) -> Report;

    /// What the process uses.
    fn usage(&self) -> Usage;
}

/// The answer to one request, which came to the address `local`. Its body is never read.
pub(super) fn respond(
    request: &Parts,
    access: &Access,
    local: IpAddr,
    sight: &impl Sight,
) -> Response<Full<Bytes>> {
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let path = request.uri.path();
    if path == "/healthz" {
        return match sight.healthy() {
            true => plain(StatusCode::OK, "ok\n"),
            false => plain(StatusCode::SERVICE_UNAVAILABLE, "not ok\n"),
        };
    }
    if let Some(refused) = refusal(&request.headers, access, local) {
        return refused;
    }
    match path {
        "/" => answer(StatusCode::OK, "text/html; charset=utf-8", page::render(&sight.report())),
        "/metrics" => {
            let text = metrics::render(&sight.report(), sight.usage());
            answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        "/status.json" => {
            let json = serde_json::to_string(&sight.report()).unwrap_or_default();
            answer(StatusCode::OK, "application/json", json)
        }
        // Browsers ask for it unasked; a 404 would stand in their console.
        "/favicon.ico" => plain(StatusCode::NO_CONTENT, ""),
        _ => plain(StatusCode::NOT_FOUND, "there are /, /metrics, /status.json and /healthz\n"),
    }
}

/// Why a request is not admitted; `None` if it is.
fn refusal(headers: &HeaderMap, access: &Access, local: IpAddr) -> Option<Response<Full<Bytes>>> {
    if !host_is_ours(headers, access, local) {
        return Some(plain(
            StatusCode::MISDIRECTED_REQUEST,
            "not a name of this box: add it to [status] hosts\n",
        ));
    }
    if !origin_is_ours(headers, access, local) || !site_is_ours(headers) {
        return Some(plain(
            StatusCode::FORBIDDEN,
            "another web page asks for this: open it by its own address\n",
        ));
    }
    if !may_read(headers, access) {
        let mut refused = plain(
            StatusCode::UNAUTHORIZED,
            "log in with any name and the text of status.token in data_dir as the password\n",
        );
        let how = HeaderValue::from_static("Basic realm=\"lakehead\", charset=\"UTF-8\"");
        refused.headers_mut().insert(WWW_AUTHENTICATE, how);
        return Some(refused);
    }
    None
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", text.into())
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let policy = HeaderValue::from_str(page::content_security_policy());
    headers.insert(CONTENT_SECURITY_POLICY, policy.expect("the policy is ASCII"));
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = HeaderValue::from_static("same-origin");
    headers.insert("cross-origin-resource-policy", policy);
    response
}

/// The request has one `Host`, and it is ours.
fn host_is_ours(headers: &HeaderMap, access: &Access, local: IpAddr) -> bool {
    let host = only(headers, HOST.as_str()).and_then(|host| host.to_str().ok());
    host.is_some_and(|host| is_ours(host, access, local))
}

/// The request has no `Origin`, or one whose host is ours. `null` and the schemes of apps are not.
/// <https://fetch.spec.whatwg.org/#origin-header>
fn origin_is_ours(headers: &HeaderMap, access: &Access, local: IpAddr) -> bool {
    if !headers.contains_key(ORIGIN) {
        return true;
    }
    let origin = only(headers, ORIGIN.as_str()).and_then(|origin| origin.to_str().ok());
    let Some((scheme, host)) = origin.and_then(|origin| origin.split_once("://")) else {
        return false;
    };
    let web = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    web && is_ours(host, access, local)
}

/// The browser does not say that another web page asks, or a person opens the page by a link.
/// <https://www.w3.org/TR/fetch-metadata/>
fn site_is_ours(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let is = |name, value: &str| only(headers, name).is_some_and(|given| given == value);
    let opened = is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document");
    opened || sites.all(|site| site == "same-origin" || site == "none")
}

/// The header's value, if it is there once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether `host`, with or without a port, is `localhost`, the address that the request came to, or a name
/// from the configuration.
fn is_ours(host: &str, access: &Access, local: IpAddr) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    match name.parse::<IpAddr>() {
        Ok(address) => address == local.to_canonical() || address == local,
        Err(_) => name == "localhost" || access.hosts.contains(&name),
    }
}

/// `Basic` with any name and the token as password, or `Bearer` with the token.
fn may_read(headers: &HeaderMap, access: &Access) -> bool {
    let Some(token) = &access.token else { return true };
    let Some(given) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let Some((scheme, given)) = given.split_once(' ') else { return false };
    let given = match scheme.to_ascii_lowercase().as_str() {
        "basic" => STANDARD.decode(given.trim()).unwrap_or_default(),
        "bearer" => format!(":{}", given.trim()).into_bytes(),
        _ => return false,
    };
    let Some(colon) = given.iter().position(|byte| *byte == b':') else { return false };
    constant_time::verify_slices_are_equal(&given[colon + 1..], token.expose()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use http::Request;

    use super::*;
    use crate::{
        clock::SystemClock,
        telemetry::{board::Board, heartbeat::Heartbeat, report::Reporter},
    };

    /// Counts how often it is looked at.
    struct Counted {
        reporter: Reporter,
        reports: Cell<usize>,
        others: Cell<usize>,
    }

    impl Sight for Counted {
        fn healthy(&self) -> bool {
            self.others.update(|times| times + 1);
            true
        }

        fn report(&self) -> Report {
            self.reports.update(|times| times + 1);
            self.reporter.report()
        }

        fn usage(&self) -> Usage {
            self.others.update(|times| times + 1);
            Usage::default()
        }
    }

    fn counted() -> Counted {
        let reporter =
            Reporter::new("a", Board::default(), Heartbeat::default(), Arc::new(SystemClock));
        reporter.ready();
        Counted { reporter, reports: Cell::new(0), others: Cell::new(0) }
    }

    fn ask_of(
        sight: &Counted,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        token: Option<&str>,
    ) -> Response<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let token = token.map(|token| Secret::new(token.into()));
        let access = Access { token, hosts: vec!["plant7-a.lan".into()] };
        respond(&parts, &access, IpAddr::from([192, 0, 2, 7]), sight)
    }

    fn ask(
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        token: Option<&str>,
    ) -> Response<Full<Bytes>> {
        ask_of(&counted(), method, path, headers, token)
    }

    fn status(path: &str, headers: &[(&str, &str)], token: Option<&str>) -> u16 {
        ask("GET", path, headers, token).status().as_u16()
    }

    #[test]
    fn without_the_token_nothing_but_health_is_told() {
        let host = ("host", "192.0.2.7:8443");
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for path in ["/", "/metrics", "/status.json", "/nothing"] {
            assert_eq!(status(path, &[host], Some("t0ken")), 401, "{path}");
            for wrong in [
                basic("admin:"),
                basic("t0ken"),
                basic("a:t0ken2"),
                "Basic !".into(),
                "Bearer t0ke".into(),
                "t0ken".into(),
            ] {
                assert_eq!(
                    status(path, &[host, ("authorization", &wrong)], Some("t0ken")),
                    401,
                    "{wrong}"
                );
            }
        }
        assert_eq!(status("/healthz", &[], Some("t0ken")), 200);
        for right in [basic("anyone:t0ken"), basic(":t0ken"), "Bearer t0ken".into()] {
            assert_eq!(
                status("/", &[host, ("authorization", &right)], Some("t0ken")),
                200,
                "{right}"
            );
        }
    }

    #[test]
    fn a_name_that_is_not_ours_is_refused_with_and_without_login() {
        for foreign in ["evil.example", "192.0.2.8", "localhost.evil.example", "[::1]", ""] {
            assert_eq!(status("/", &[("host", foreign)], None), 421, "{foreign}");
        }
        assert_eq!(status("/", &[], None), 421);
        assert_eq!(status("/", &[("host", "localhost"), ("host", "evil.example")], None), 421);
        for ours in ["localhost:8443", "LOCALHOST", "plant7-a.lan.:8443", "192.0.2.7"] {
            assert_eq!(status("/", &[("host", ours)], None), 200, "{ours}");
        }
    }

    #[test]
    fn nothing_can_be_changed() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            assert_eq!(ask(method, "/", &[("host", "localhost")], None).status(), 405, "{method}");
        }
        assert_eq!(ask("HEAD", "/", &[("host", "localhost")], None).status(), 200);
        assert_eq!(status("/../etc/passwd", &[("host", "localhost")], None), 404);
    }

    #[test]
    fn every_answer_forbids_scripts_and_frames() {
        for path in ["/", "/metrics", "/healthz", "/none"] {
            let answer = ask("GET", path, &[("host", "localhost")], None);
            let policy = answer.headers()["content-security-policy"].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
            assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        }
    }

    #[test]
    fn nothing_is_looked_at_for_who_is_not_admitted() {
        let (host, wrong) = (("host", "localhost"), ("authorization", "Bearer t0ke"));
        let foreign = ("origin", "https://evil.example");
        let sight = counted();
        for path in ["/", "/metrics", "/status.json"] {
            let told = |method, headers: &[(&str, &str)]| {
                ask_of(&sight, method, path, headers, Some("t0ken")).status().as_u16()
            };
            assert_eq!(told("POST", &[host]), 405);
            assert_eq!(told("GET", &[("host", "evil.example")]), 421);
            assert_eq!(told("GET", &[host, foreign, ("authorization", "Bearer t0ken")]), 403);
            assert_eq!(told("GET", &[host]), 401);
            assert_eq!(told("GET", &[host, wrong]), 401);
        }
        assert_eq!((sight.reports.get(), sight.others.get()), (0, 0));
        assert_eq!(ask_of(&sight, "GET", "/healthz", &[], Some("t0ken")).status(), 200);
        for path in ["/favicon.ico", "/nothing"] {
            ask_of(&sight, "GET", path, &[host], None);
        }
        assert_eq!((sight.reports.get(), sight.others.get()), (0, 1), "health is no report");
        ask_of(&sight, "GET", "/status.json", &[host], None);
        assert_eq!((sight.reports.get(), sight.others.get()), (1, 1));
    }

    #[test]
    fn an_origin_that_is_not_ours_is_refused() {
        let told = |origin| status("/", &[("host", "localhost"), ("origin", origin)], None);
        for foreign in [
            "null",
            "",
            "localhost",
            "https://evil.example",
            "https://localhost.evil.example",
            "https://evil.example:443",
            "https://192.0.2.8:8443",
            "https://[::1]",
            "http://",
            "file://",
            "capacitor://localhost",
            "https://localhost@evil.example",
        ] {
            assert_eq!(told(foreign), 403, "{foreign}");
        }
        for ours in [
            "http://localhost:8080",
            "HTTPS://Plant7-A.lan:8443",
            "https://192.0.2.7:8443",
            "https://plant7-a.lan",
        ] {
            assert_eq!(told(ours), 200, "{ours}");
        }
        let ours = ("origin", "https://localhost");
        let two = [("host", "localhost"), ours, ("origin", "https://evil.example")];
        assert_eq!(status("/", &two, None), 403);
        assert_eq!(status("/healthz", &[("origin", "null")], None), 200);
    }

    #[test]
    fn another_web_page_may_link_here_and_nothing_else() {
        let told = |site, mode, dest| {
            let fetch = [("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            let headers = [("host", "localhost"), fetch[0], fetch[1], ("sec-fetch-dest", dest)];
            status("/", &headers, None)
        };
        for site in ["cross-site", "same-site", "", "same-origin, cross-site", "new-word"] {
            assert_eq!(told(site, "navigate", "document"), 200, "{site}: a link");
            for (mode, dest) in [
                ("no-cors", "image"),
                ("cors", "empty"),
                ("navigate", "iframe"),
                ("navigate", "embed"),
                ("no-cors", "document"),
            ] {
                assert_eq!(told(site, mode, dest), 403, "{site} {mode} {dest}");
            }
        }
        for site in ["same-origin", "none"] {
            assert_eq!(told(site, "no-cors", "image"), 200, "{site}");
        }
        let host = ("host", "localhost");
        let (ours, others) = (("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site"));
        assert_eq!(status("/", &[host, ours, others], None), 403);
        assert_eq!(status("/", &[host, others], None), 403);
        assert_eq!(status("/healthz", &[others], None), 200);
        let link = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        let posing = [host, others, link[0], link[1], ("origin", "https://evil.example")];
        assert_eq!(status("/", &posing, None), 403);
    }
}
