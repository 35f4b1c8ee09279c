//! What the lake's column of a PostgreSQL type is, and whether its binary form is read. Pure.

use crate::source::LakeType;

/// What the lake's column holds.
pub fn lake_type(type_id: u32, type_modifier: i32) -> LakeType {
    match type_id {
        16 => LakeType::Boolean,
        21 => LakeType::Int16,
        23 => LakeType::Int32,
        20 | 26 => LakeType::Int64,
        700 => LakeType::Float32,
        701 => LakeType::Float64,
        1082 => LakeType::Date,
        1114 => LakeType::Timestamp,
        1184 => LakeType::TimestampUtc,
        1700 if type_modifier >= 4 => {
            let precision = u8::try_from((type_modifier - 4) >> 16 & 0xffff).unwrap_or(u8::MAX);
            let scale = u8::try_from((type_modifier - 4) & 0x7ff).unwrap_or(u8::MAX);
            match (1..=38).contains(&precision) && scale <= precision {
                true => LakeType::Decimal { precision, scale },
                false => LakeType::Text,
            }
        }
        17 => LakeType::Binary,
        2950 => LakeType::Uuid,
        _ => LakeType::Text,
    }
}

/// Whether the binary form of the type is read.
pub fn renders_binary(type_id: u32) -> bool {
    matches!(
        type_id,
        16 | 17
            | 19
            | 20
            | 21
            | 23
            | 25
            | 26
            | 114
            | 700
            | 701
            | 1042
            | 1043
            | 1082
            | 1114
            | 1184
            | 1700
            | 2950
            | 3802
    )
}
