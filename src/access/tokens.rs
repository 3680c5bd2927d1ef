//! The token file: parsing, look-up, reload, and generation of tokens.
//!
//! The file has one token per line, its fields separated by white space; lines that begin with `#`
//! are comments:
//!
//! ```text
//! name  sha256:HEX  scopes  [services]
//! ```
//!
//! Scopes and services are comma-separated lists. A comma, white space and `%` in a service are
//! percent-encoded.
//!
//! The file holds SHA-256 hashes of the tokens, not the tokens. A slow password hash would gain
//! nothing, since a token has 256 random bits. The binary search leaks timing only about the hash
//! of the submitted token, which an attacker cannot steer towards a hash in the file; the final
//! comparison takes constant time nevertheless.

use std::fmt;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use rand::Rng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::event::SERVICE_BYTES_MAX;
use crate::http::percent;

/// A permission of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Ingest,
    Query,
    Metrics,
    /// Includes all other scopes.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Ingest, Self::Query, Self::Metrics, Self::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Query => "query",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// A set of scopes, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub fn parse(list: &str) -> Result<Self, &'static str> {
        let mut set = 0;
        for word in list.split(',') {
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == word);
            set |= 1 << scope.ok_or("the scopes must be a list of ingest, query, metrics, admin")? as u8;
        }
        Ok(Self(set))
    }

    pub fn allow(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8 | 1 << Scope::Admin as u8) != 0
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = Scope::ALL.into_iter().filter(|scope| self.0 & (1 << *scope as u8) != 0);
        f.write_str(&held.map(Scope::name).collect::<Vec<_>>().join(","))
    }
}

/// The services that a token is restricted to, sorted.
pub type Services = Arc<[Box<str>]>;

type TokenHash = [u8; 32];

/// A token of the file.
#[derive(Debug)]
pub struct Token {
    pub name: String,
    hash: TokenHash,
    pub scopes: Scopes,
    /// None: all.
    pub services: Option<Services>,
}

const TOKENS_MAX: usize = 10_000;
const SERVICES_MAX: usize = 1000;
const NAME_BYTES_MAX: usize = 64;
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Errors that are reported for one file.
const ERRORS_REPORTED_MAX: usize = 20;
/// Prefix of tokens, by which secret scanners can recognize them.
const PREFIX: &str = "aev_";
const HASH_PREFIX: &str = "sha256:";
/// The longest token that is hashed.
const TOKEN_BYTES_MAX: usize = 256;

/// The tokens of a file, sorted by hash.
#[derive(Debug, Default)]
pub struct Tokens(Vec<Token>);

/// Why a token file cannot be used: one message per error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct LoadTokensError(pub Vec<String>);

impl Tokens {
    pub fn read(path: &Path) -> Result<Self, LoadTokensError> {
        let read_error = |error: std::io::Error| {
            LoadTokensError(vec![format!("AUTH_TOKENS_FILE {}: {error}", path.display())])
        };
        let mut text = String::new();
        File::open(path)
            .map_err(read_error)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(read_error)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(read_error(std::io::Error::other(format!(
                "the file is larger than {FILE_BYTES_MAX} bytes"
            ))));
        }
        Self::parse(&text).map_err(|errors| {
            let at = |(line, message): &(usize, String)| format!("{}:{line}: {message}", path.display());
            let mut lines: Vec<String> = errors.iter().take(ERRORS_REPORTED_MAX).map(at).collect();
            if errors.len() > ERRORS_REPORTED_MAX {
                lines.push(format!("and {} more", errors.len() - ERRORS_REPORTED_MAX));
            }
            LoadTokensError(lines)
        })
    }

    /// Parses all lines and returns the errors with their line numbers. No message repeats a hash,
    /// since the field may hold a token by mistake.
    fn parse(text: &str) -> Result<Self, Vec<(usize, String)>> {
        let mut tokens: Vec<(usize, Token)> = Vec::new();
        let mut errors = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Token::parse(line) {
                Ok(token) => tokens.push((number, token)),
                Err(message) => errors.push((number, message)),
            }
        }
        if tokens.len() > TOKENS_MAX {
            errors.push((tokens[TOKENS_MAX].0, format!("there are more than {TOKENS_MAX} tokens")));
        }
        tokens.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
        for pair in tokens.windows(2).filter(|pair| pair[0].1.name == pair[1].1.name) {
            errors.push((
                pair[1].0,
                format!("the name {} is already used in line {}", pair[1].1.name, pair[0].0),
            ));
        }
        tokens.sort_by_key(|(_, token)| token.hash);
        for pair in tokens.windows(2).filter(|pair| pair[0].1.hash == pair[1].1.hash) {
            errors.push((pair[1].0, format!("the hash is already used in line {}", pair[0].0)));
        }
        errors.sort_by_key(|(number, _)| *number);
        if errors.is_empty() {
            Ok(Self(tokens.into_iter().map(|(_, token)| token).collect()))
        } else {
            Err(errors)
        }
    }

    /// Finds the entry of a token.
    pub fn find(&self, token: &[u8]) -> Option<&Token> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let hash: TokenHash = Sha256::digest(token).into();
        let start = self.0.partition_point(|known| known.hash[..8] < hash[..8]);
        let near = self.0[start..].iter().take_while(|known| known.hash[..8] == hash[..8]);
        near.filter(|known| bool::from(known.hash.ct_eq(&hash))).last()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Token {
    fn parse(line: &str) -> Result<Self, String> {
        let parts: Vec<&str> = line.split_ascii_whitespace().collect();
        let (name, hash, scopes, services) = match parts[..] {
            [name, hash, scopes] => (name, hash, scopes, None),
            [name, hash, scopes, services] => (name, hash, scopes, Some(services)),
            _ => return Err(format!("a line must be: name {HASH_PREFIX}HEX scopes [services]")),
        };
        check_name(name)?;
        let hash = hash.strip_prefix(HASH_PREFIX).and_then(parse_hash);
        Ok(Self {
            name: name.to_owned(),
            hash: hash
                .ok_or_else(|| format!("the second field must be {HASH_PREFIX} and 64 hexadecimal digits"))?,
            scopes: Scopes::parse(scopes)?,
            services: services.map(parse_services).transpose()?,
        })
    }

    /// The identity of the token in the rate limiter and in the idempotency keys of pushed metrics:
    /// the first 64 bits of its hash.
    pub fn identity(&self) -> u64 {
        u64::from_le_bytes(*self.hash.first_chunk().expect("a hash is longer"))
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("a name must be 1 to {NAME_BYTES_MAX} letters, digits, dots, hyphens and underscores"))
}

fn parse_services(list: &str) -> Result<Services, String> {
    let mut services = Vec::new();
    for word in list.split(',') {
        let service =
            percent::decode(word).map_err(|_bad| "the percent-encoding of a service is not valid")?;
        if !(1..=SERVICE_BYTES_MAX).contains(&service.len()) {
            return Err(format!("a service must be 1 to {SERVICE_BYTES_MAX} bytes"));
        }
        services.push(service.into());
    }
    if services.len() > SERVICES_MAX {
        return Err(format!("a token may list at most {SERVICES_MAX} services"));
    }
    services.sort_unstable();
    Ok(services.into())
}

fn parse_hash(digits: &str) -> Option<TokenHash> {
    let digits: &[u8; 64] = digits.as_bytes().try_into().ok()?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut hash = TokenHash::default();
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte =
            u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).expect("two hexadecimal digits are a byte");
    }
    Some(hash)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all that is written");
        text
    })
}

/// The parameters of a token to be generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    name: String,
    scopes: Scopes,
    services: Vec<String>,
}

impl NewToken {
    /// `services` is a comma-separated list of percent-encoded services.
    pub fn new(name: &str, scopes: &str, services: Option<&str>) -> Result<Self, String> {
        check_name(name)?;
        let services = services.map(parse_services).transpose()?;
        let services = services.iter().flat_map(|services| services.iter());
        Ok(Self {
            name: name.to_owned(),
            scopes: Scopes::parse(scopes)?,
            services: services.map(|service| encode_service(service)).collect(),
        })
    }

    /// Generates a token. Returns it, which is stored nowhere, and the line for the file, which has
    /// its hash.
    pub fn generate(&self, rng: &mut impl Rng) -> (String, String) {
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let token = format!("{PREFIX}{}", to_hex(&secret));
        let hash = to_hex(&Sha256::digest(token.as_bytes()));
        let mut line = format!("{} {HASH_PREFIX}{hash} {}", self.name, self.scopes);
        if !self.services.is_empty() {
            line.push(' ');
            line.push_str(&self.services.join(","));
        }
        (token, line)
    }
}

fn encode_service(service: &str) -> String {
    service.chars().fold(String::new(), |mut text, c| {
        if matches!(c, ',' | '%') || c.is_whitespace() || c.is_control() {
            for byte in c.to_string().bytes() {
                write!(text, "%{byte:02X}").expect("a string takes all that is written");
            }
        } else {
            text.push(c);
        }
        text
    })
}

/// The tokens of the last valid version of the file, shared by all acceptors.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    /// Incremented by every reload, so that an acceptor detects a change with one atomic load.
    generation: AtomicU64,
    latest: Mutex<Arc<Tokens>>,
}

impl TokenFile {
    pub fn open(path: &Path) -> Result<Self, LoadTokensError> {
        let tokens = Tokens::read(path)?;
        log::info!(tokens = tokens.len(); "requests require a token listed in {}", path.display());
        Ok(Self {
            path: path.to_owned(),
            generation: AtomicU64::new(1),
            latest: Mutex::new(Arc::new(tokens)),
        })
    }

    /// Reloads the file. If it is not valid, the tokens stay unchanged.
    pub fn reload(&self) {
        match Tokens::read(&self.path) {
            Ok(tokens) => {
                log::info!(tokens = tokens.len(); "tokens reloaded");
                *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
                self.generation.fetch_add(1, Ordering::Release);
            }
            Err(LoadTokensError(lines)) => {
                for line in lines {
                    log::error!("tokens not reloaded: {line}");
                }
            }
        }
    }

    /// A cached view of the tokens for one acceptor.
    pub fn view(self: &Arc<Self>) -> TokenView {
        TokenView { file: Arc::clone(self), generation: 0, tokens: Arc::default() }
    }
}

/// One acceptor's cached view of the tokens.
#[derive(Debug)]
pub struct TokenView {
    file: Arc<TokenFile>,
    generation: u64,
    tokens: Arc<Tokens>,
}

impl TokenView {
    /// The latest tokens. Locks only after a reload, and never waits for the lock: if it is held,
    /// the previous tokens are used and the next call tries again.
    #[inline]
    pub fn tokens(&mut self) -> &Tokens {
        let generation = self.file.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.refresh(generation);
        }
        &self.tokens
    }

    #[cold]
    fn refresh(&mut self, generation: u64) {
        let latest = match self.file.latest.try_lock() {
            Ok(latest) => latest,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.tokens = Arc::clone(&latest);
        self.generation = generation;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::event::Timestamp;

    fn generated(name: &str, scopes: &str, services: Option<&str>) -> (String, String) {
        let mut rng = Clock::manual(Timestamp::from_millis(0), name.len() as u64).rng();
        NewToken::new(name, scopes, services).unwrap().generate(&mut rng)
    }

    #[test]
    fn generated_token_matches_its_generated_line() {
        let (token, line) = generated("shop", "ingest,query", Some("b,a%2Cb,\u{e9}%20"));
        let (other, other_line) = generated("probe", "metrics", None);
        assert!(token.starts_with("aev_") && token.len() == 68, "{token}");
        assert!(!line.contains(&token[4..]), "only the hash");
        assert!(
            line.starts_with("shop sha256:") && line.ends_with(" ingest,query a%2Cb,b,\u{e9}%20"),
            "{line}"
        );
        let tokens = Tokens::parse(&format!("# ours\n\n{line}\r\n  {other_line}")).unwrap();
        let found = tokens.find(token.as_bytes()).unwrap();
        assert_eq!((found.name.as_str(), found.scopes.to_string().as_str()), ("shop", "ingest,query"));
        assert_eq!(found.services.as_deref().unwrap().join("|"), "a,b|b|\u{e9} ");
        assert_eq!(tokens.find(other.as_bytes()).unwrap().services, None);
        for wrong in
            ["", "aev_", &token[..67], &token.to_uppercase(), &format!("{token} "), &"x".repeat(1000)]
        {
            assert!(tokens.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn scope_admin_includes_all_and_other_scopes_only_themselves() {
        let check = |scopes: &str| Scope::ALL.map(|scope| Scopes::parse(scopes).unwrap().allow(scope));
        assert_eq!(check("ingest"), [true, false, false, false]);
        assert_eq!(check("query,metrics"), [false, true, true, false]);
        assert_eq!(check("admin"), [true; 4]);
        for bad in ["", "ingest,", "Ingest", "ingest query", "all"] {
            assert!(Scopes::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parse_reports_every_error_with_its_line_and_without_the_secret() {
        let (token, line) = generated("a", "ingest", None);
        let hash = line.split(' ').nth(1).unwrap();
        let text = format!(
            "{line}\na {hash}0 ingest\nb {token} ingest\nb {hash} root\nb\n{hash}\nc {hash} ingest x,,y\n\
             a/b {hash} ingest\na {} query\nd {hash} query\ne {hash} ingest x y\nf {hash} ingest %zz",
            hash.replace(':', ":0").strip_suffix(char::is_alphanumeric).unwrap(),
        );
        let errors = Tokens::parse(&text).unwrap_err();
        let lines: Vec<usize> = errors.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], "{errors:?}");
        for (_, message) in &errors {
            assert!(!message.contains(&token[4..20]) && !message.contains(&hash[10..30]), "{message}");
        }
        assert_eq!(errors[7].1, "the name a is already used in line 1");
        assert_eq!(errors[8].1, "the hash is already used in line 1");
    }

    #[test]
    fn token_file_bounds_are_inclusive() {
        #[track_caller]
        fn check(name: usize, service: usize, services: usize, good: bool) {
            let hash = "0".repeat(64);
            let list = vec!["s".repeat(service); services].join(",");
            let line = format!("{} sha256:{hash} ingest {list}", "n".repeat(name));
            assert_eq!(Tokens::parse(&line).is_ok(), good, "{name} {service} {services}");
        }
        check(64, 100, 1000, true);
        check(65, 1, 1, false);
        check(1, 101, 1, false);
        check(1, 1, 1001, false);
        let many = |count: usize| {
            (0..count).fold(String::new(), |text, nth| text + &format!("n{nth} sha256:{nth:064x} query\n"))
        };
        assert_eq!(Tokens::parse(&many(TOKENS_MAX)).unwrap().len(), TOKENS_MAX);
        assert!(Tokens::parse(&many(TOKENS_MAX + 1)).is_err());
    }

    #[test]
    fn token_reload_applies_at_the_next_request_and_ignores_an_invalid_file() {
        let path = std::env::temp_dir().join(format!("aurore-tokens-{}", std::process::id()));
        let ((one, one_line), (other, other_line)) =
            (generated("a", "ingest", None), generated("bb", "query", None));
        std::fs::write(&path, &one_line).unwrap();
        let file = Arc::new(TokenFile::open(&path).unwrap());
        let mut view = file.view();
        assert!(view.tokens().find(one.as_bytes()).is_some());
        std::fs::write(&path, &other_line).unwrap();
        assert!(view.tokens().find(one.as_bytes()).is_some());
        file.reload();
        assert!(view.tokens().find(one.as_bytes()).is_none());
        assert!(view.tokens().find(other.as_bytes()).is_some());
        std::fs::write(&path, "nonsense").unwrap();
        file.reload();
        assert!(view.tokens().find(other.as_bytes()).is_some());
        std::fs::remove_file(&path).unwrap();
        file.reload();
        assert!(view.tokens().find(other.as_bytes()).is_some());
        let LoadTokensError(gone) = Tokens::read(&path).unwrap_err();
        assert!(gone[0].starts_with("AUTH_TOKENS_FILE "), "{gone:?}");
    }
}
