//! Where a target waits for a guest: `unix:PATH` or `tcp:HOST:PORT`.
//!
//! A unix socket is its owner's alone. A TCP port is open to whoever reaches it, and neither side proves
//! who it is: it is for a network that only those use who may have the guest.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A name or an address, and a port: `host:4444`, `192.0.2.1:4444`, `[2001:db8::1]:4444`.
    Tcp(String),
}

/// Why a text is no endpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    /// Neither kind.
    #[error("`{0}` is no place for a guest: write unix:PATH or tcp:HOST:PORT")]
    Unknown(String),
    /// There is no path.
    #[error("`{0}` lacks the path of the socket: write unix:PATH")]
    NoPath(String),
    /// There is no host.
    #[error(
        "`{0}` lacks the host: write tcp:HOST:PORT (tcp:0.0.0.0:PORT waits at all addresses of this host)"
    )]
    NoHost(String),
    /// There is no port, or a number that no port has.
    #[error("`{0}` lacks a port from 0 to 65535: write tcp:HOST:PORT")]
    NoPort(String),
    /// An address of IPv6 as it is.
    #[error("`{0}`: write an address of IPv6 in brackets, as in tcp:[::1]:PORT")]
    NoBrackets(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let whole = || text.to_owned();
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(EndpointError::NoPath(whole()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let Some(place) = text.strip_prefix("tcp:") else {
            return Err(EndpointError::Unknown(whole()));
        };
        let Some((host, port)) = place.rsplit_once(':') else {
            return Err(EndpointError::NoPort(whole()));
        };
        // A sign is not part of a port, though Rust takes it.
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || port.parse::<u16>().is_err() {
            return Err(EndpointError::NoPort(whole()));
        }
        if host.is_empty() {
            return Err(EndpointError::NoHost(whole()));
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err(EndpointError::NoBrackets(whole()));
        }
        Ok(Self::Tcp(place.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

#[cfg(test)]
mod endpoint_test;
