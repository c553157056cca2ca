//! What bundles and large envelopes are called in a store, below the prefix that somebody configured. One spelling each.

use std::fmt;
use std::io;

use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};
use pithead_spool::{Lane, Position};
use time::{Date, OffsetDateTime};

use crate::identity::GatewayName;

/// The last second that has a date of four digits: a clock that is beyond it is wrong, and its bundles still have a name.
const LAST_SECOND: i64 = 253_402_300_799;

/// Not the name of such an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a bundle or of a large envelope")]
pub struct NotAName;

/// 16 random bytes, drawn once with a spool and kept with it: with the disk's folder, or with the lanes that several gateways share. A
/// spool that is begun anew has others, so that its places, which begin again at 0, are not taken for those of the old one. Displays as
/// 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpoolId([u8; 16]);

impl SpoolId {
    /// Of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Another one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes: a guess might be the name of another spool.
    pub fn draw() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads exactly 32 lower-case hex digits.
    ///
    /// # Errors
    /// [`NotAName`].
    pub fn from_hex(text: &str) -> Result<Self, NotAName> {
        let low = || hex_number(text.get(16..).filter(|low| low.len() == 16)?);
        let high = || hex_number(text.get(..16)?);
        let (Some(high), Some(low)) = (high(), low()) else { return Err(NotAName) };
        Ok(Self((u128::from(high) << 64 | u128::from(low)).to_be_bytes()))
    }
}

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpoolId({self})")
    }
}

/// 16 lower-case hex digits.
fn hex_number(text: &str) -> Option<u64> {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == 16 && text.bytes().all(digit)).then(|| u64::from_str_radix(text, 16).ok())?
}

/// A folder of bundles: an hour in UTC. Displays as `2026/11/27/05`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(u32);

impl Hour {
    /// The hour that a moment lies in; microseconds since 1970. Everything behind the year 9999 is its last hour.
    #[must_use]
    pub fn of_us(us: u64) -> Self {
        let seconds = (us / 1_000_000).min(LAST_SECOND as u64);
        Self((seconds / 3600) as u32)
    }

    /// Microseconds since 1970 of its beginning.
    #[must_use]
    pub const fn begin_us(self) -> u64 {
        self.0 as u64 * 3_600_000_000
    }

    /// The hour before it; the first has none.
    #[must_use]
    pub fn before(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// The hour behind it; the last of the year 9999 has none.
    #[must_use]
    pub fn behind(self) -> Option<Self> {
        let next = Self(self.0 + 1);
        (i64::from(next.0) * 3600 <= LAST_SECOND).then_some(next)
    }

    /// Reads `2026/11/27/05`.
    ///
    /// # Errors
    /// [`NotAName`].
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let mut fields = text.split('/');
        let mut number = || fields.next()?.parse::<u16>().ok();
        let mut read = || {
            let (year, month, day, hour) = (number()?, number()?, number()?, number()?);
            let month = u8::try_from(month).ok()?.try_into().ok()?;
            let date = Date::from_calendar_date(year.into(), month, day.try_into().ok()?).ok()?;
            let time = date.with_hms(hour.try_into().ok()?, 0, 0).ok()?;
            u32::try_from(time.assume_utc().unix_timestamp() / 3600).ok()
        };
        let hour = Self(read().ok_or(NotAName)?);
        (hour.to_string() == text).then_some(hour).ok_or(NotAName)
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It cannot fail: no hour is behind the year 9999.
        let begin = OffsetDateTime::from_unix_timestamp(i64::from(self.0) * 3600).map_err(|_| fmt::Error)?;
        write!(f, "{:04}/{:02}/{:02}/{:02}", begin.year(), u8::from(begin.month()), begin.day(), begin.hour())
    }
}

impl fmt::Debug for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hour({self})")
    }
}

/// The name of a bundle, and all that it says. Displays as the name, below the prefix of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleName {
    /// The site that its envelopes are of.
    pub site: Site,
    /// When its first entry was taken in.
    pub hour: Hour,
    /// Whose spool it is: the gateway that packs it, or the site's name where its gateways share one, since each of them may go on with it.
    pub gateway: GatewayName,
    /// The spool that it comes from.
    pub spool: SpoolId,
    /// The lane of that spool.
    pub lane: Lane,
    /// The place of its first entry.
    pub first: Position,
}

impl BundleName {
    /// What all names of bundles begin with.
    pub const FOLDER: &'static str = "bundles/";

    /// What all names of bundles end in.
    pub const ENDING: &'static str = ".bundle";

    /// Reads a name as it is displayed.
    ///
    /// # Errors
    /// [`NotAName`].
    pub fn parse(name: &str) -> Result<Self, NotAName> {
        let read = || {
            let stem = name.strip_prefix(Self::FOLDER)?.strip_suffix(Self::ENDING)?;
            let (site, rest) = stem.split_once('/')?;
            let (hour, file) = rest.rsplit_once('/')?;
            // From behind: a gateway's name may hold a '-'.
            let mut fields = file.rsplitn(4, '-');
            let first = hex_number(fields.next()?)?;
            let lane = fields.next()?.parse().ok().and_then(Lane::from_index)?;
            let spool = SpoolId::from_hex(fields.next()?).ok()?;
            Some(Self {
                site: Site::new(site).ok()?,
                hour: Hour::parse(hour).ok()?,
                gateway: GatewayName::new(fields.next()?).ok()?,
                spool,
                lane,
                first: Position(first),
            })
        };
        let parsed = read().ok_or(NotAName)?;
        (parsed.to_string() == name).then_some(parsed).ok_or(NotAName)
    }
}

impl fmt::Display for BundleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { site, hour, gateway, spool, lane, first } = self;
        write!(f, "{}{site}/{hour}/{gateway}-{spool}-{}-{:016x}", Self::FOLDER, lane.index(), first.0)?;
        f.write_str(Self::ENDING)
    }
}

/// The name of a large envelope, and all that it says. Displays as the name, below the prefix of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeName {
    /// What the envelope is filed under.
    pub identity: Identity,
    /// The first 8 bytes of the SHA-256 of its header: two that conflict have a name each.
    pub header: u64,
}

impl LargeName {
    /// What all names of large envelopes begin with.
    pub const FOLDER: &'static str = "large/";

    /// What all names of large envelopes end in.
    pub const ENDING: &'static str = ".envelope";

    /// The name of an envelope with this header.
    #[must_use]
    pub fn new(identity: Identity, header_sha256: &[u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *header_sha256;
        Self { identity, header: u64::from_be_bytes([a, b, c, d, e, f, g, h]) }
    }

    /// Reads a name as it is displayed.
    ///
    /// # Errors
    /// [`NotAName`].
    pub fn parse(name: &str) -> Result<Self, NotAName> {
        let read = || {
            let stem = name.strip_prefix(Self::FOLDER)?.strip_suffix(Self::ENDING)?;
            let mut fields = stem.split('/');
            let site = Site::new(fields.next()?).ok()?;
            let device = DeviceId::new(fields.next()?).ok()?;
            let stream = StreamName::new(fields.next()?).ok()?;
            let run: Run = fields.next()?.parse().ok()?;
            let (seq, header) = fields.next()?.split_once('-')?;
            let seq = Seq::new(seq.parse().ok()?).ok()?;
            let identity = Identity { site, device, stream, run, seq };
            Some(Self { identity, header: hex_number(header)? })
        };
        let parsed = read().ok_or(NotAName)?;
        (parsed.to_string() == name).then_some(parsed).ok_or(NotAName)
    }
}

impl fmt::Display for LargeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { site, device, stream, run, seq } = &self.identity;
        write!(f, "{}{site}/{device}/{stream}/{run}/{seq:020}-{:016x}", Self::FOLDER, self.header)?;
        f.write_str(Self::ENDING)
    }
}

/// The name of a copy of a large envelope, in a store that the gateways of a site share, and all that it says. Displays as the name,
/// below the prefix of the store. No two attempts have one name, so that nothing is ever written over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyName {
    /// Of which lanes it is: the gateways that share them share the copies. Letters, digits, `-` and `_`.
    pub set: String,
    /// In which term of an owner of the lanes it was made.
    pub epoch: u64,
    /// What the envelope is filed under. For people, and for whoever looks for what the refused area mentions.
    pub identity: Identity,
    /// Drawn for this attempt.
    pub random: u64,
}

impl CopyName {
    /// What all names of a set begin with.
    #[must_use]
    pub fn folder(set: &str) -> String {
        format!("copies/{set}/")
    }

    /// What all names of copies end in.
    pub const ENDING: &'static str = ".envelope";

    /// What is put beside a copy that is damaged, so that it is kept for a person.
    #[must_use]
    pub fn damaged(&self) -> String {
        format!("{self}.damaged")
    }

    /// Reads a name as it is displayed.
    ///
    /// # Errors
    /// [`NotAName`].
    pub fn parse(name: &str) -> Result<Self, NotAName> {
        let read = || {
            let mut fields = name.strip_prefix("copies/")?.strip_suffix(Self::ENDING)?.split('/');
            let set = fields.next()?.to_owned();
            let site = Site::new(fields.next()?).ok()?;
            let device = DeviceId::new(fields.next()?).ok()?;
            let (epoch, rest) = fields.next()?.split_once('-')?;
            // From behind: a stream's name may hold a '-'.
            let mut rest = rest.rsplitn(4, '-');
            let random = hex_number(rest.next()?)?;
            let seq = Seq::new(rest.next()?.parse().ok()?).ok()?;
            let run: Run = rest.next()?.parse().ok()?;
            let stream = StreamName::new(rest.next()?).ok()?;
            let identity = Identity { site, device, stream, run, seq };
            Some(Self { set, epoch: hex_number(epoch)?, identity, random })
        };
        let parsed = read().ok_or(NotAName)?;
        (parsed.to_string() == name).then_some(parsed).ok_or(NotAName)
    }
}

impl fmt::Display for CopyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, epoch, identity: Identity { site, device, stream, run, seq }, random } = self;
        write!(f, "copies/{set}/{site}/{device}/{epoch:016x}-{stream}-{run}-{seq:020}-{random:016x}")?;
        f.write_str(Self::ENDING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_copy_is_fixed_and_reads_back() {
        let identity = Identity {
            site: Site::new("pit-7").unwrap(),
            device: DeviceId::new("truck.42").unwrap(),
            stream: StreamName::new("lidar-2").unwrap(),
            run: Run::new(0x3_0000_0001).unwrap(),
            seq: Seq::new(7).unwrap(),
        };
        let name = CopyName { set: "pithead-pit-7".into(), epoch: 12, identity, random: 0xab };
        let text = "copies/pithead-pit-7/pit-7/truck.42/000000000000000c-lidar-2-0000000300000001-00000000000000000007-\
             00000000000000ab.envelope";
        assert_eq!(name.to_string(), text);
        assert_eq!(CopyName::parse(text), Ok(name.clone()));
        assert!(text.starts_with(&CopyName::folder("pithead-pit-7")));
        for (from, to) in [
            ("copies/", ""),
            ("0c-", "0C-"),
            ("0000007-", "000007-"),
            ("/truck.42/", "/"),
            ("/truck.42/", "//"),
            ("00ab.", "ab."),
            (".envelope", ".envelope.damaged"),
        ] {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text, "{from}");
            assert_eq!(CopyName::parse(&other), Err(NotAName), "{other}");
        }
        assert_eq!(CopyName::parse(&name.damaged()), Err(NotAName));
    }

    fn bundle() -> BundleName {
        BundleName {
            site: Site::new("pit-7").unwrap(),
            hour: Hour::of_us(1_795_464_000_000_000),
            gateway: GatewayName::new("edge-1.a").unwrap(),
            spool: SpoolId::new(*b"0123456789abcdef"),
            lane: Lane::Second,
            first: Position(258),
        }
    }

    const BUNDLE: &str =
        "bundles/pit-7/2026/11/23/20/edge-1.a-30313233343536373839616263646566-1-0000000000000102.bundle";

    #[test]
    fn the_name_of_a_bundle_is_fixed_and_reads_back() {
        assert_eq!(bundle().to_string(), BUNDLE);
        assert_eq!(BundleName::parse(BUNDLE), Ok(bundle()));
    }

    #[test]
    fn the_name_of_a_large_one_is_fixed_and_reads_back() {
        let identity = Identity {
            site: Site::new("pit-7").unwrap(),
            device: DeviceId::new("truck.42").unwrap(),
            stream: StreamName::new("lidar").unwrap(),
            run: Run::new(0x3_0000_0001).unwrap(),
            seq: Seq::new(7).unwrap(),
        };
        let name = LargeName::new(identity, &[0xab; 32]);
        let text =
            "large/pit-7/truck.42/lidar/0000000300000001/00000000000000000007-abababababababab.envelope";
        assert_eq!(name.to_string(), text);
        assert_eq!(LargeName::parse(text), Ok(name));
        for (from, to) in [
            ("0000007-", "000007-"),
            ("0000007-", "000000a-"),
            ("large/", "larg/"),
            ("7-ab", "7-AB"),
            ("/lidar/", "//"),
        ] {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text);
            assert_eq!(LargeName::parse(&other), Err(NotAName), "{other}");
        }
        assert_eq!(LargeName::parse(BUNDLE), Err(NotAName));
    }

    #[test]
    fn a_name_has_one_spelling() {
        for (from, to) in [
            ("bundles/", ""),
            ("bundles/", "/bundles/"),
            (".bundle", ".bundle.bundle"),
            (".bundle", ""),
            ("2026/", "26/"),
            ("2026/11/23/20", "2026/13/23/20"),
            ("2026/11/23/20", "2026/02/30/20"),
            ("2026/11/23/20", "2026/11/23/24"),
            ("2026/11/23/20", "2026/11/23"),
            ("2026/11/23/20", "2026/11/23/20/20"),
            ("2026/11/23/20", "+202/11/23/20"),
            ("2026/11/23/20", "1969/12/31/23"),
            ("/11/", "/+1/"),
            ("-1-", "-3-"),
            ("-1-", "-01-"),
            ("0102.", "102."),
            ("0102.", "010A."),
            ("6566-", "656-"),
            ("pit-7", "Pit-7"),
            ("edge-1.a", "edge..a"),
            ("edge-1.a-", ""),
        ] {
            let other = BUNDLE.replacen(from, to, 1);
            assert_ne!(other, BUNDLE, "{from}");
            assert_eq!(BundleName::parse(&other), Err(NotAName), "{other}");
        }
    }

    #[test]
    fn every_moment_has_an_hour_and_every_hour_its_neighbours() {
        for (us, text) in [
            (0, "1970/01/01/00"),
            (3_599_999_999, "1970/01/01/00"),
            (3_600_000_000, "1970/01/01/01"),
            (u64::MAX, "9999/12/31/23"),
        ] {
            let hour = Hour::of_us(us);
            assert_eq!((hour.to_string().as_str(), Hour::parse(text)), (text, Ok(hour)));
            assert_eq!(Hour::of_us(hour.begin_us()), hour);
        }
        assert_eq!(Hour::of_us(0).before(), None);
        assert_eq!(Hour::of_us(u64::MAX).behind(), None);
        assert_eq!(Hour::of_us(0).behind().and_then(Hour::before), Some(Hour::of_us(0)));
    }

    #[test]
    fn a_spool_is_named_by_hex_digits_alone() {
        let id = SpoolId::new([0xab; 16]);
        assert_eq!(SpoolId::from_hex(&id.to_string()), Ok(id));
        for wrong in ["", "ab", &"ab".repeat(17), &"AB".repeat(16), &"a+".repeat(16), &"é".repeat(16)] {
            assert_eq!(SpoolId::from_hex(wrong), Err(NotAName), "{wrong}");
        }
    }
}
