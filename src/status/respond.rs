//! What the status page answers to a request. Pure.
//!
//! **Invariant (I35):** without the token nothing but `/healthz` is answered beyond loopback; and on
//! loopback nothing is answered to a name that is not ours, so that a web page cannot read it (rebinding).

use core::net::IpAddr;

use aws_lc_rs::constant_time;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{
        ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST,
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

/// What the answer is made of.
pub(super) struct Sight<'a> {
    /// The report.
    pub(super) report: &'a Report,
    /// What the process uses.
    pub(super) usage: Usage,
    /// The address that the request came to.
    pub(super) local: IpAddr,
}

/// The answer to one request. Its body is never read.
pub(super) fn respond(
    request: &Parts,
    access: &Access,
    sight: &Sight<'_>,
) -> Response<Full<Bytes>> {
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let path = request.uri.path();
    if path == "/healthz" {
        return match sight.report.healthy {
            true => plain(StatusCode::OK, "ok\n"),
            false => plain(StatusCode::SERVICE_UNAVAILABLE, "not ok\n"),
        };
    }
    if !host_is_ours(&request.headers, access, sight.local) {
        return plain(
            StatusCode::MISDIRECTED_REQUEST,
            "not a name of this box: add it to [status] hosts\n",
        );
    }
    if !may_read(&request.headers, access) {
        let mut refused = plain(
            StatusCode::UNAUTHORIZED,
            "log in with any name and the text of status.token in data_dir as the password\n",
        );
        let how = HeaderValue::from_static("Basic realm=\"lakehead\", charset=\"UTF-8\"");
        refused.headers_mut().insert(WWW_AUTHENTICATE, how);
        return refused;
    }
    match path {
        "/" => answer(StatusCode::OK, "text/html; charset=utf-8", page::render(sight.report)),
        "/metrics" => {
            let text = metrics::render(sight.report, sight.usage);
            answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        "/status.json" => {
            let json = serde_json::to_string(sight.report).unwrap_or_default();
            answer(StatusCode::OK, "application/json", json)
        }
        // Browsers ask for it unasked; a 404 would stand in their console.
        "/favicon.ico" => plain(StatusCode::NO_CONTENT, ""),
        _ => plain(StatusCode::NOT_FOUND, "there are /, /metrics, /status.json and /healthz\n"),
    }
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

/// `localhost`, the address that the request came to, or a name from the configuration.
fn host_is_ours(headers: &HeaderMap, access: &Access, local: IpAddr) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
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
    use std::sync::Arc;

    use http::Request;

    use super::*;
    use crate::{
        clock::SystemClock,
        telemetry::{board::Board, heartbeat::Heartbeat, report::Reporter},
    };

    fn ask(
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        token: Option<&str>,
    ) -> Response<Full<Bytes>> {
        let reporter =
            Reporter::new("a", Board::default(), Heartbeat::default(), Arc::new(SystemClock));
        reporter.ready();
        let report = reporter.report();
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let token = token.map(|token| Secret::new(token.into()));
        let access = Access { token, hosts: vec!["plant7-a.lan".into()] };
        let local = IpAddr::from([192, 0, 2, 7]);
        respond(&parts, &access, &Sight { report: &report, usage: Usage::default(), local })
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
}
