//! As much of HTTP/1.1 (RFC 9112) as requests to a verifier and a workload's to us need, with every length bounded.
//!
//! A general client was weighed and left out: ours speaks TLS 1.3 alone, takes no redirect, proxy or
//! environment variable, and needs no name service, which a static binary does not have.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

/// The header of the local API that says who sealed the data.
pub const SEALED_BY: &str = "Coffer-Sealed-By: ";
/// Most bytes of status line and headers.
const HEAD_MAX: usize = 16 << 10;
/// Most bytes of a chunk-size line.
const CHUNK_LINE_MAX: usize = 64;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Value of the header that says who sealed what is in the body.
    pub sealer: Option<String>,
    /// Body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum HttpError {
    /// The connection failed.
    Io(io::Error),
    /// The peer does not speak as agreed.
    Protocol(&'static str),
}

impl From<io::Error> for HttpError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A request, as the local API gets it.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Body; empty if there is none.
    pub body: Zeroizing<Vec<u8>>,
}

/// Reads one request. A body is announced by its length; chunks are not spoken here.
pub fn read_request<S: Read>(stream: &mut S, limit: usize) -> Result<Request, HttpError> {
    let reader = &mut Reader { stream, buffer: Vec::new(), start: 0 };
    let head = read_head(reader)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some("HTTP/1.1"), None) => (method.into(), target.into()),
        _ => return Err(HttpError::Protocol("the request line is not HTTP/1.1")),
    };
    let body = match framing(lines)? {
        None => Vec::new(),
        Some(Framing::Length(length)) if length <= limit => reader.take(length)?,
        Some(Framing::Length(_)) => return Err(HttpError::Protocol(TOO_LONG)),
        Some(Framing::Chunked) => return Err(HttpError::Protocol("the length is not given")),
    };
    Ok(Request { method, target, body: Zeroizing::new(body) })
}

/// What is said of a body over its limit.
pub const TOO_LONG: &str = "it is too long";

/// Sends a GET and reads its answer.
pub fn get<S: Read + Write>(
    stream: &mut S,
    host: &str,
    path: &str,
    limit: usize,
) -> Result<Response, HttpError> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    stream.flush()?;
    read_response(&mut Reader { stream, buffer: Vec::new(), start: 0 }, limit)
}

/// Sends a POST and reads its answer; the connection can be used again afterwards.
pub fn post<S: Read + Write>(
    stream: &mut S,
    host: &str,
    path: &str,
    content_type: &str,
    body: &[u8],
    limit: usize,
) -> Result<Response, HttpError> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut request = head.into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request)?;
    stream.flush()?;
    read_response(&mut Reader { stream, buffer: Vec::new(), start: 0 }, limit)
}

/// How the end of a body is found.
enum Framing {
    Length(usize),
    Chunked,
}

fn read_response<S: Read>(reader: &mut Reader<'_, S>, limit: usize) -> Result<Response, HttpError> {
    let head = read_head(reader)?;
    let mut lines = head.split("\r\n");
    let status = parse_status(lines.next().unwrap_or_default())?;
    let sealer = lines.clone().find_map(|line| line.strip_prefix(SEALED_BY)).map(str::to_owned);
    let body = match framing(lines)?.ok_or(HttpError::Protocol("the length is not given"))? {
        Framing::Length(length) if length > limit => {
            return Err(HttpError::Protocol(TOO_LONG));
        }
        Framing::Length(length) => reader.take(length)?,
        Framing::Chunked => read_chunks(reader, limit)?,
    };
    Ok(Response { status, sealer, body })
}

fn read_head<S: Read>(reader: &mut Reader<'_, S>) -> Result<String, HttpError> {
    let head = reader.take_until(b"\r\n\r\n", HEAD_MAX)?;
    String::from_utf8(head).map_err(|_| HttpError::Protocol("a header is not text"))
}

fn parse_status(line: &str) -> Result<u16, HttpError> {
    let code = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    match code.and_then(|digits| digits.parse().ok()) {
        // 1xx answers announce another one; nothing we send asks for them.
        Some(status) if (200..600).contains(&status) => Ok(status),
        _ => Err(HttpError::Protocol("the status line is not HTTP/1.1")),
    }
}

fn framing<'a>(headers: impl Iterator<Item = &'a str>) -> Result<Option<Framing>, HttpError> {
    let mut found = None;
    for header in headers {
        let (name, value) =
            header.split_once(':').ok_or(HttpError::Protocol("a header has no colon"))?;
        let value = value.trim();
        let next = if name.eq_ignore_ascii_case("content-length") {
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(HttpError::Protocol("the length is not a number"));
            }
            let length = value.parse().map_err(|_| HttpError::Protocol("it is too long"))?;
            Framing::Length(length)
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(HttpError::Protocol("the transfer encoding is unknown"));
            }
            Framing::Chunked
        } else {
            continue;
        };
        // Two ways to find the end of one body is how requests are smuggled.
        if found.replace(next).is_some() {
            return Err(HttpError::Protocol("the length is given twice"));
        }
    }
    Ok(found)
}

fn read_chunks<S: Read>(reader: &mut Reader<'_, S>, limit: usize) -> Result<Vec<u8>, HttpError> {
    let mut body = Vec::new();
    loop {
        let line = reader.take_until(b"\r\n", CHUNK_LINE_MAX)?;
        let digits = std::str::from_utf8(&line).ok().filter(|text| !text.starts_with('+'));
        let size = digits
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .ok_or(HttpError::Protocol("a chunk has no size"))?;
        if size > limit.saturating_sub(body.len()) {
            return Err(HttpError::Protocol("it is too long"));
        }
        body.extend(reader.take(size)?);
        // Trailers are not spoken: the empty line must follow at once.
        if reader.take(2)? != b"\r\n" {
            return Err(HttpError::Protocol("a chunk does not end"));
        }
        if size == 0 {
            return Ok(body);
        }
    }
}

struct Reader<'a, S> {
    stream: &'a mut S,
    buffer: Vec<u8>,
    start: usize,
}

impl<S: Read> Reader<'_, S> {
    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    fn fill(&mut self) -> Result<(), HttpError> {
        let mut piece = [0; 8192];
        let read = self.stream.read(&mut piece)?;
        if read == 0 {
            return Err(HttpError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
        Ok(())
    }

    /// Exactly `length` bytes.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, HttpError> {
        loop {
            if let Some(bytes) = self.unread().get(..length) {
                let bytes = bytes.to_vec();
                self.start += length;
                return Ok(bytes);
            }
            self.fill()?;
        }
    }

    /// The bytes before `end`, which is consumed too.
    fn take_until(&mut self, end: &[u8], limit: usize) -> Result<Vec<u8>, HttpError> {
        loop {
            let found = self.unread().windows(end.len()).position(|window| window == end);
            if let Some(at) = found.filter(|at| *at <= limit) {
                let bytes = self.take(at)?;
                self.start += end.len();
                return Ok(bytes);
            }
            if found.is_some() || self.unread().len() > limit {
                return Err(HttpError::Protocol("a line or head is too long"));
            }
            self.fill()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str) -> Result<Response, String> {
        let mut bytes = answer.as_bytes();
        read_response(&mut Reader { stream: &mut bytes, buffer: Vec::new(), start: 0 }, 16).map_err(
            |error| match error {
                HttpError::Io(error) => error.kind().to_string(),
                HttpError::Protocol(reason) => reason.into(),
            },
        )
    }

    #[test]
    fn reads_both_framings() {
        let hello = Response { status: 200, sealer: None, body: b"hello".to_vec() };
        let plain = read("HTTP/1.1 200 OK\r\nX: y\r\ncontent-LENGTH: 5\r\n\r\nhello");
        assert_eq!(plain, Ok(hello));
        let chunked =
            "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        assert_eq!(
            read(chunked),
            Ok(Response { status: 403, sealer: None, body: b"hello".to_vec() })
        );
    }

    #[test]
    fn refuses_what_is_not_agreed() {
        let cases = [
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "the status line is not HTTP/1.1"),
            ("HTTP/1.1 100 Continue\r\n\r\n", "the status line is not HTTP/1.1"),
            ("HTTP/1.1 200 OK\r\n\r\n", "the length is not given"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n", "it is too long"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "it is too long"),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "the length is not a number"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
                "the length is given twice",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "the length is given twice",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
                "the transfer encoding is unknown",
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n", "it is too long"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n",
                "a chunk has no size",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
                "a chunk does not end",
            ),
            ("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "a header has no colon"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "unexpected end of file"),
            ("HTTP/1.1 200", "unexpected end of file"),
        ];
        for (answer, expected) in cases {
            assert_eq!(read(answer), Err(expected.into()), "{answer:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(HEAD_MAX));
        assert_eq!(read(&endless), Err("a line or head is too long".into()));
    }
}
