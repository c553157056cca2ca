//! Where a program is asked how it is, and given orders: an address on loopback, or a socket in the file system.
//!
//! A socket is `unix:/run/pithead/admin.sock`. Its mode is 0660 from its first moment: it is made in a folder that is its
//! owner's alone, and gets its name when it has its mode. So the group that owns the folder decides who may ask. One that
//! was left behind by a program that was killed is replaced; one that somebody answers on is not, and neither is anything
//! that is no socket. A program that ends takes its own away.

use std::{
    fmt, fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::mpsc,
    time::Duration,
};

use http::{HeaderMap, Method, header};
use pithead_proto::errors::v1::ErrorReason;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::net::{TcpListener, UnixListener};

use super::ProgramError;

/// Its owner and its group, and nobody else.
const MODE: u32 = 0o660;
/// What a page in a browser is told that gives an order.
pub const ORDERS_COME_FROM_PROGRAMS: &str = "orders come from programs on this machine, not from pages\n";
/// What comes before a path in the configuration.
const UNIX: &str = "unix:";
/// Longest path of a socket that the system takes, in bytes, with the zero behind it (`sun_path`).
const PATH_MAX: usize = 107;
/// What the name that it is made under adds to its folder: `/.4294967295/s`.
const STAGED_BYTES: usize = 14;

/// An address to listen on and to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// `127.0.0.1:7480`. It knows nobody, so it belongs on loopback.
    Tcp(SocketAddr),
    /// `unix:/run/pithead/admin.sock`
    Unix(PathBuf),
}

/// Why a text is no [`AdminAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAnAddress {
    /// Neither of the two.
    #[error("write IP:PORT such as \"127.0.0.1:7480\", or \"unix:/run/pithead/admin.sock\"")]
    Neither,
    /// A socket whose place depends on where a program was started would not be found by another.
    #[error("the path of a socket is whole, from / on: \"unix:/run/pithead/admin.sock\"")]
    Relative,
    /// The system has no room for it, or for the name under which it is made.
    #[error("the path of a socket has at most {PATH_MAX} bytes, and its folder at most {}", PATH_MAX - STAGED_BYTES)]
    TooLong,
}

impl FromStr for AdminAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return text.parse().map(Self::Tcp).map_err(|_| NotAnAddress::Neither);
        };
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(NotAnAddress::Relative);
        }
        let path = PathBuf::from(path);
        // It is made under another name first, and that one has to fit as well.
        let staged = staged_for(&path, u32::MAX);
        if path.as_os_str().len().max(staged.as_os_str().len()) > PATH_MAX {
            return Err(NotAnAddress::TooLong);
        }
        Ok(Self::Unix(path))
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl From<SocketAddr> for AdminAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl Serialize for AdminAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AdminAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = AdminAddress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("IP:PORT or unix:PATH")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AdminAddress, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A connection to ask over, with the same limit for each of its steps.
pub trait Stream: Read + Write + Send + fmt::Debug {}

impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl AdminAddress {
    /// The address and port, if it is one.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// The `Host` of a request to it.
    #[must_use]
    pub fn host(&self) -> String {
        self.socket_addr().map_or_else(|| "localhost".to_owned(), |address| address.to_string())
    }

    /// Connects, blocking.
    ///
    /// # Errors
    /// What the system says.
    pub fn connect(&self, limit: Duration) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, limit)?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
                Ok(Box::new(stream))
            }
            Self::Unix(path) => {
                let path = path.clone();
                let stream = within(limit, move || UnixStream::connect(path))?;
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))?;
                Ok(Box::new(stream))
            }
        }
    }

    /// Takes the address. Inside a tokio runtime.
    ///
    /// # Errors
    /// When another program has it, or it is not ours to take.
    pub async fn bind(&self) -> Result<AdminListener, ProgramError> {
        let taken = |error: &io::Error| {
            let (reason, what) = match error.kind() {
                io::ErrorKind::AddrInUse => (ErrorReason::PortTaken, format!("{self} is in use")),
                _ => (ErrorReason::ConfigInvalid, format!("cannot listen on {self}: {error}")),
            };
            ProgramError::new(reason, what)
                .affects("health and metrics cannot be asked for")
                .todo("stop the other program, or set [admin] listen")
        };
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(|error| taken(&error))?;
                Ok(AdminListener::Tcp(listener))
            }
            Self::Unix(path) => {
                let (listener, file) = bind_unix(path).map_err(|error| taken(&error))?;
                Ok(AdminListener::Unix(listener, file))
            }
        }
    }
}

/// An address that is taken. What serves differs by its kind.
#[derive(Debug)]
pub enum AdminListener {
    /// On a port.
    Tcp(TcpListener),
    /// On a socket, whose file goes with the second.
    Unix(UnixListener, SocketFile),
}

impl AdminListener {
    /// Where it is reached, with the port that the system chose if none was asked for.
    #[must_use]
    pub fn address(&self) -> Option<AdminAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(AdminAddress::Tcp),
            Self::Unix(_, file) => Some(AdminAddress::Unix(file.path.clone())),
        }
    }
}

/// The file of a socket. Dropped, it takes the file away, if that is still the same one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |meta: &fs::Metadata| meta.file_type().is_socket() && meta.ino() == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| is_ours(&meta)) {
            // Whoever comes next replaces what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where the socket is made before it has its mode: in a folder of this process beside it.
fn staged_for(path: &Path, process: u32) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(format!(".{process}")).join("s")
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => match UnixStream::connect(path) {
            // Whoever was killed is not there any more to answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => return Err(error),
        },
        Ok(_) => return Err(io::Error::other("something stands there that is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let staged = staged_for(path, std::process::id());
    let folder = staged.parent().unwrap_or(Path::new("/")).to_owned();
    let bind = || {
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let listener = UnixListener::bind(&staged)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(MODE))?;
        let inode = fs::symlink_metadata(&staged)?.ino();
        #[expect(
            clippy::disallowed_methods,
            reason = "a socket is gone after a power cut, whatever was synced"
        )]
        fs::rename(&staged, path)?;
        Ok((listener, SocketFile { path: path.to_owned(), inode }))
    };
    let bound = bind();
    let _ = fs::remove_file(&staged);
    let _ = fs::remove_dir(&folder);
    bound
}

/// Whether a request is an order that a page in a browser gives: a page from elsewhere cannot leave `Origin` out of a POST.
#[must_use]
pub fn is_order_of_a_page(method: &Method, headers: &HeaderMap) -> bool {
    method != Method::GET && headers.contains_key(header::ORIGIN)
}

/// Something that blocks, for at most `limit`: a program that takes no more connections would keep whoever asks for ever, and the
/// system has no limit of its own for a socket in the file system.
fn within<T: Send + 'static>(
    limit: Duration,
    blocking: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = mpsc::sync_channel(1);
    // Left to itself if it takes too long: the command ends then.
    std::thread::Builder::new().name("ask".to_owned()).spawn(move || drop(tell.send(blocking())))?;
    told.recv_timeout(limit).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(path: &Path) -> AdminAddress {
        format!("unix:{}", path.display()).parse().expect("an address")
    }

    #[test]
    fn an_order_is_a_pages_if_it_says_where_that_is_from_and_a_look_never_is() {
        let mut headers = HeaderMap::new();
        assert!(!is_order_of_a_page(&Method::POST, &headers));
        headers.insert(header::ORIGIN, "null".parse().unwrap());
        assert!(is_order_of_a_page(&Method::POST, &headers) && is_order_of_a_page(&Method::PUT, &headers));
        assert!(!is_order_of_a_page(&Method::GET, &headers));
    }

    #[test]
    fn whoever_is_not_answered_is_not_kept() {
        let (_never, waits) = mpsc::sync_channel::<()>(1);
        let stuck = within(Duration::from_millis(5), move || Ok(waits.recv().is_ok()));
        assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(within(Duration::from_secs(60), || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn an_address_is_a_port_or_a_whole_path() {
        for text in ["127.0.0.1:7480", "[::1]:7480", "unix:/run/pithead/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().expect(text).to_string(), text);
        }
        let why = |text: &str| text.parse::<AdminAddress>().expect_err(text);
        assert_eq!(why("localhost"), NotAnAddress::Neither);
        assert_eq!(why("unix:admin.sock"), NotAnAddress::Relative);
        assert_eq!(why("unix:/run/"), NotAnAddress::Relative);
        assert_eq!(why(&format!("unix:/{}", "a".repeat(PATH_MAX))), NotAnAddress::TooLong);
        // Its own name would fit, and the one that it is made under would not.
        let folder = |bytes: usize| format!("unix:/{}/s", "a".repeat(bytes - 1));
        assert_eq!(why(&folder(PATH_MAX - STAGED_BYTES + 1)), NotAnAddress::TooLong);
        assert!(folder(PATH_MAX - STAGED_BYTES).parse::<AdminAddress>().is_ok());
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_and_its_groups_and_goes_with_its_program() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = address(&path).bind().await.expect("taken");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
        address(&path).connect(Duration::from_secs(5)).expect("somebody listens");
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_replaced_and_one_that_is_answered_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // Whoever is killed leaves its file.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = address(&path).bind().await.expect("it was left behind");
        let second = address(&path).bind().await.expect_err("somebody answers");
        assert_eq!(second.reason, ErrorReason::PortTaken);
        // One that was replaced is not the first one's to take away.
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"mine").unwrap();
        drop(listener);
        assert!(path.exists());
        let refused = address(&path).bind().await.expect_err("no socket");
        assert!(refused.what.contains("no socket"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_said() {
        let error = address(Path::new("/nowhere/admin.sock")).bind().await.expect_err("no folder");
        assert_eq!(error.reason, ErrorReason::ConfigInvalid);
        assert!(error.what.starts_with("cannot listen on unix:/nowhere/admin.sock: "), "{error}");
    }
}
