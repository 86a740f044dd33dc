//! Sizes and counts as LVM and CSI mean them. Rounding is always named at the call; nothing here
//! knows what a volume is.

use std::fmt;
use std::num::NonZeroU64;

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

/// A number of physical or logical extents of one volume group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extents(u64);

/// The extent size of a volume group, in bytes. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentSize(NonZeroU64);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);
    /// The most that CSI can say: its sizes are signed 64-bit integers.
    pub const MAX: Self = Self(i64::MAX.unsigned_abs());

    /// `n` bytes.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// `n` KiB, at most [`Bytes::MAX`].
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(KIB))
    }

    /// `n` MiB, at most [`Bytes::MAX`].
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(MIB))
    }

    /// `n` GiB, at most [`Bytes::MAX`].
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(GIB))
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// As CSI wants it; what does not fit is the largest `i64`.
    #[must_use]
    pub fn to_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// From a CSI size. `None` when it is negative.
    #[must_use]
    pub fn from_i64(n: i64) -> Option<Self> {
        u64::try_from(n).ok().map(Self)
    }

    /// The sum, at most `u64::MAX`.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * percent / 100`, rounded down.
    #[must_use]
    pub fn percent_floor(self, percent: u64) -> Self {
        let n = u128::from(self.0).saturating_mul(u128::from(percent)) / 100;
        Self(u64::try_from(n).unwrap_or(u64::MAX))
    }

    /// Whether both are zero bytes.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

impl fmt::Display for Bytes {
    /// `10 GiB` when that is exact, otherwise `10.4 GiB (11185496064 bytes)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        for (unit, name) in units.into_iter().filter_map(|(u, n)| Some((NonZeroU64::new(u)?, n))) {
            if self.0 < unit.get() {
                continue;
            }
            let (whole, rest) = (self.0 / unit, self.0 % unit);
            if rest == 0 {
                return write!(f, "{whole} {name}");
            }
            let tenth = rest.saturating_mul(10) / unit;
            return write!(f, "{whole}.{tenth} {name} ({} bytes)", self.0);
        }
        write!(f, "{} bytes", self.0)
    }
}

impl Extents {
    /// No extents.
    pub const ZERO: Self = Self(0);

    /// `n` extents.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// The number of extents.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, at most `u64::MAX`.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The next multiple of `n`, as LVM rounds a striped LV. `n` = 0 counts as 1.
    #[must_use]
    pub fn ceil_to_multiple_of(self, n: u64) -> Self {
        Self(self.0.checked_next_multiple_of(n.max(1)).unwrap_or(u64::MAX))
    }

    /// The multiple of `n` at or below. `n` = 0 counts as 1.
    #[must_use]
    pub const fn floor_to_multiple_of(self, n: u64) -> Self {
        match self.0.checked_rem(n) {
            Some(rest) => Self(self.0.saturating_sub(rest)),
            None => self,
        }
    }
}

impl std::iter::Sum for Extents {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} extents", self.0)
    }
}

impl ExtentSize {
    /// From a number of bytes. `None` for zero.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        NonZeroU64::new(bytes).map(Self)
    }

    /// The extent size in bytes.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.get())
    }

    /// The fewest extents that hold `size`.
    #[must_use]
    pub fn extents_ceil(self, size: Bytes) -> Extents {
        Extents(size.0.div_ceil(self.0.get()))
    }

    /// The most extents that fit into `size`.
    #[must_use]
    pub fn extents_floor(self, size: Bytes) -> Extents {
        Extents(size.0 / self.0)
    }

    /// The size of `extents`, at most `u64::MAX` bytes.
    #[must_use]
    pub fn size_of(self, extents: Extents) -> Bytes {
        Bytes(extents.0.saturating_mul(self.0.get()))
    }
}

/// Reads a quantity as Kubernetes writes sizes: a whole number with `Ki Mi Gi Ti Pi`, `k M G T P`,
/// or nothing behind it.
///
/// # Errors
/// What is wrong with the text, as the end of a sentence.
pub fn parse_quantity(text: &str) -> Result<Bytes, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| {
        format!("{text:?} is not a size: expected a whole number and a unit, as in 64Ki or 10Gi")
    })?;
    let factor = match unit {
        "" => 1,
        "Ki" => KIB,
        "Mi" => MIB,
        "Gi" => GIB,
        "Ti" => TIB,
        "Pi" => 1 << 50,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        _ => {
            return Err(format!(
                "{text:?} has the unknown unit {unit:?}: use Ki, Mi, Gi, Ti, Pi, k, M, G, T or P"
            ));
        }
    };
    number
        .checked_mul(factor)
        .filter(|n| *n <= Bytes::MAX.get())
        .map(Bytes)
        .ok_or_else(|| format!("{text:?} is more than {} bytes", Bytes::MAX.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (10 * GIB, "10 GiB"),
            (10 * GIB + 512 * MIB, "10.5 GiB (11274289152 bytes)"),
            (2 * TIB - 1, "1.9 TiB (2199023255551 bytes)"),
        ] {
            assert_eq!(Bytes::new(bytes).to_string(), text);
        }
    }

    #[test]
    fn quantities_as_kubernetes_writes_them() {
        assert_eq!(parse_quantity("64Ki"), Ok(Bytes::kib(64)));
        assert_eq!(parse_quantity("10Gi"), Ok(Bytes::gib(10)));
        assert_eq!(parse_quantity("5G"), Ok(Bytes::new(5_000_000_000)));
        assert_eq!(parse_quantity("512"), Ok(Bytes::new(512)));
        for bad in ["", "Gi", "-1", "1.5Gi", "1m", "10gb", "99999999999999999999", "9000000Pi"] {
            assert!(parse_quantity(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn rounding_up_never_loses_a_byte(size in 0..u64::MAX / 2, extent in 1..u64::MAX / 4) {
            let extent = ExtentSize::new(extent).unwrap();
            let up = extent.extents_ceil(Bytes::new(size));
            let down = extent.extents_floor(Bytes::new(size));
            prop_assert!(extent.size_of(up) >= Bytes::new(size));
            prop_assert!(extent.size_of(down) <= Bytes::new(size));
            prop_assert!(up.get() - down.get() <= 1);
        }

        #[test]
        fn multiples(n in 0..u64::MAX / 2, of in 1..10_000u64) {
            let (up, down) = (
                Extents::new(n).ceil_to_multiple_of(of),
                Extents::new(n).floor_to_multiple_of(of),
            );
            prop_assert!(up.get() >= n && up.get() - n < of && up.get().is_multiple_of(of));
            prop_assert!(down.get() <= n && n - down.get() < of && down.get().is_multiple_of(of));
        }
    }
}
