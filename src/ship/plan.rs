//! Cuts one sealed object into the parts of a multipart upload. Pure.
//!
//! **Invariant:** the ranges of a plan tile `0..object_bytes` in order, and all but the last are
//! `part_bytes` long: a restart cuts the same parts again from these two numbers, so part *n* of an
//! upload is always the same bytes.
//!
//! Bounds are S3's: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>.

use std::ops::Range;

use crate::seal::SUM_BYTES;

/// How one object is cut. Part numbers start at 1, as S3's do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PartPlan {
    object_bytes: u64,
    part_bytes: u64,
}

/// The least and the most that a store takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Every part but the last is at least this long, in bytes.
    pub part_bytes_min: u64,
    /// Every part is at most this long, in bytes.
    pub part_bytes_max: u64,
    /// Parts of one object.
    pub parts_max: u64,
}

/// Why an object cannot be cut. Never retried.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Larger than S3 takes in 10,000 parts of 5 GiB.
    #[error("an object of {0} B is more than S3 takes")]
    TooLarge(u64),
    /// Parts that S3 would refuse: from a damaged fact.
    #[error("{object_bytes} B cannot be cut into parts of {part_bytes} B")]
    PartBytes {
        /// Length of the object.
        object_bytes: u64,
        /// Length of a part.
        part_bytes: u64,
    },
}

impl Limits {
    /// Those of S3.
    pub const S3: Self = Self {
        part_bytes_min: PART_BYTES_MIN,
        part_bytes_max: PART_BYTES_MAX,
        parts_max: PARTS_MAX,
    };

    /// Cuts `object_bytes` into parts of about `part_bytes`: more where S3's limits demand it. `None`
    /// if one request is enough.
    ///
    /// # Errors
    ///
    /// [`PlanError::TooLarge`].
    pub fn cut(&self, object_bytes: u64, part_bytes: u64) -> Result<Option<PartPlan>, PlanError> {
        let wanted = part_bytes.clamp(self.part_bytes_min, self.part_bytes_max);
        // Where the sums are known; smaller parts are of a model store.
        let wanted = wanted - if wanted < SUM_BYTES { 0 } else { wanted % SUM_BYTES };
        if object_bytes <= wanted {
            return Ok(None);
        }
        let least = object_bytes.div_ceil(self.parts_max).next_multiple_of(1 << 20);
        let fits = wanted.saturating_mul(self.parts_max) >= object_bytes;
        let part_bytes = if fits { wanted } else { least };
        if part_bytes > self.part_bytes_max {
            return Err(PlanError::TooLarge(object_bytes));
        }
        Ok(Some(PartPlan { object_bytes, part_bytes }))
    }

    /// The plan of an upload that was begun with these lengths.
    ///
    /// # Errors
    ///
    /// [`PlanError::PartBytes`]: no plan ever had them.
    pub fn again(&self, object_bytes: u64, part_bytes: u64) -> Result<PartPlan, PlanError> {
        let bounds = self.part_bytes_min..=self.part_bytes_max;
        let cut = bounds.contains(&part_bytes) && object_bytes > 0;
        if cut && object_bytes.div_ceil(part_bytes) <= self.parts_max {
            Ok(PartPlan { object_bytes, part_bytes })
        } else {
            Err(PlanError::PartBytes { object_bytes, part_bytes })
        }
    }
}

impl PartPlan {
    /// Length of the object.
    pub fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// Length of every part but the last.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes
    }

    /// How many parts, 1 to 10,000.
    pub fn parts(&self) -> u32 {
        let parts = self.object_bytes.div_ceil(self.part_bytes);
        u32::try_from(parts).expect("a plan has at most 10,000 parts")
    }

    /// The bytes of part `number`, or `None` if the plan has no such part.
    pub fn range(&self, number: u32) -> Option<Range<u64>> {
        let start = u64::from(number.checked_sub(1)?) * self.part_bytes;
        (start < self.object_bytes).then(|| start..self.object_bytes.min(start + self.part_bytes))
    }
}

/// All parts but the last are at least this long.
const PART_BYTES_MIN: u64 = 5 << 20;
const PART_BYTES_MAX: u64 = 5 << 30;
const PARTS_MAX: u64 = 10_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plan_tiles_its_object_within_the_limits_of_s3(
            object in 1u64..PARTS_MAX * PART_BYTES_MAX,
            wanted in prop_oneof![0u64..64 << 20, any::<u64>()],
        ) {
            let Some(plan) = Limits::S3.cut(object, wanted).unwrap() else {
                prop_assert!(object <= wanted.clamp(PART_BYTES_MIN, PART_BYTES_MAX));
                return Ok(());
            };
            prop_assert_eq!(Limits::S3.again(object, plan.part_bytes()), Ok(plan));
            prop_assert!(u64::from(plan.parts()) <= PARTS_MAX && plan.parts() > 1);
            let mut end = 0;
            for number in 1..=plan.parts() {
                let range = plan.range(number).unwrap();
                prop_assert_eq!(range.start, end);
                let length = range.end - range.start;
                let right = if number < plan.parts() {
                    length == plan.part_bytes() && length >= PART_BYTES_MIN
                } else {
                    length > 0 && length <= plan.part_bytes()
                };
                prop_assert!(right && length <= PART_BYTES_MAX);
                end = range.end;
            }
            prop_assert_eq!(end, object);
            prop_assert_eq!(plan.range(0), None);
            prop_assert_eq!(plan.range(plan.parts() + 1), None);
        }
    }

    #[test]
    fn parts_are_cut_where_the_sums_are_known() {
        let odd = (6 << 20) + 7;
        assert_eq!(Limits::S3.cut(40 << 20, odd).unwrap().unwrap().part_bytes(), 6 << 20);
        // One that was begun otherwise goes on as it was.
        assert_eq!(Limits::S3.again(40 << 20, odd).unwrap().part_bytes(), odd);
    }

    #[test]
    fn the_edges_fall_where_s3_has_them() {
        assert_eq!(Limits::S3.cut(0, 0), Ok(None));
        assert_eq!(Limits::S3.cut(PART_BYTES_MIN, 1), Ok(None));
        assert_eq!(Limits::S3.cut(PART_BYTES_MIN + 1, 1).unwrap().unwrap().parts(), 2);
        let most = PARTS_MAX * PART_BYTES_MAX;
        assert_eq!(Limits::S3.cut(most, 0).unwrap().unwrap().parts(), 10_000);
        assert_eq!(Limits::S3.cut(most + 1, 0), Err(PlanError::TooLarge(most + 1)));
    }

    #[test]
    fn a_damaged_fact_gives_no_plan() {
        for (object, part) in [(0, 5 << 20), (1, 0), (1, 1), (u64::MAX, 5 << 20), (9, 6 << 30)] {
            assert!(Limits::S3.again(object, part).is_err(), "{object} {part}");
        }
    }
}
