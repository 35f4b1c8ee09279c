//! Multipart uploads: create, part, complete, abort, and their lists.

use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumType,
        CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart,
        CreateMultipartUploadInput, CreateMultipartUploadOutput, ListMultipartUploadsInput,
        ListMultipartUploadsOutput, ListPartsInput, ListPartsOutput, MultipartUpload,
        Part as Listed, ServerSideEncryption, UploadPartInput, UploadPartOutput,
    },
    s3_error,
};

use super::{
    objects::{
        claim, condition, encoding, etag, give_head, give_sums, head_of, strong, sums_of, time,
    },
    store::{Bucket, Change, Head, Object, Part, Segment, Store, Upload},
    verify::{Algorithm, Sums, composite, full_object, receive},
};

pub(super) fn create(
    store: &Store,
    now: i64,
    input: &CreateMultipartUploadInput,
) -> S3Result<CreateMultipartUploadOutput> {
    let named = input.checksum_algorithm.as_ref().map(|of| Algorithm::named(of.as_str()));
    let algorithm = named.transpose()?;
    let whole = match input.checksum_type.as_ref().map(ChecksumType::as_str) {
        Some(ChecksumType::FULL_OBJECT) => true,
        Some(_) => false,
        None => matches!(algorithm, None | Some(Algorithm::Crc64Nvme)),
    };
    let possible = match algorithm {
        Some(Algorithm::Crc64Nvme) => whole,
        Some(Algorithm::Sha1 | Algorithm::Sha256) => !whole,
        _ => true,
    };
    if !possible {
        return Err(s3_error!(InvalidRequest, "no such checksum type for the algorithm"));
    }
    let id = format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..));
    let upload = Upload {
        key: input.key.clone(),
        id: id.clone(),
        head: head_of!(input),
        algorithm,
        composite: !whole,
        at: now,
        parts: std::collections::BTreeMap::new(),
    };
    let head = upload.head.clone();
    let change = Change::Create { bucket: input.bucket.clone(), upload };
    store.change(&input.bucket, |_| Ok(change))?;
    let kind = if whole { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE };
    let mut output = CreateMultipartUploadOutput {
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        upload_id: Some(id),
        checksum_algorithm: input.checksum_algorithm.clone(),
        checksum_type: algorithm.map(|_| ChecksumType::from_static(kind)),
        ..Default::default()
    };
    give_head!(output, &head);
    Ok(output)
}

fn find<'a>(bucket: &'a Bucket, key: &str, id: &str) -> S3Result<&'a Upload> {
    let upload = bucket.uploads.get(&(key.to_owned(), id.to_owned()));
    upload.ok_or_else(|| s3_error!(NoSuchUpload, "The specified upload does not exist."))
}

pub(super) async fn part(
    store: &Store,
    now: i64,
    mut request: S3Request<UploadPartInput>,
) -> S3Result<UploadPartOutput> {
    let sums = sums_of!(request.input);
    let mut claim = claim(&mut request, sums);
    let input = request.input;
    claim.length = claim.length.or(input.content_length);
    if !(1..=10_000).contains(&input.part_number) {
        return Err(s3_error!(InvalidArgument, "Part number must be between 1 and 10000"));
    }
    let (algorithm, head) = store.look(&input.bucket, |bucket| {
        let upload = find(bucket, &input.key, &input.upload_id)?;
        Ok((upload.algorithm, upload.head.clone()))
    })?;
    if let Some(of) = algorithm {
        let trailer = format!("x-amz-checksum-{}", of.name().to_ascii_lowercase());
        if !claim.sums.contains_key(&of) && !claim.announced.contains(&trailer) {
            let why = format!("Checksum Type mismatch occurred, expected {}", of.name());
            return Err(S3Error::with_message(S3ErrorCode::InvalidRequest, why));
        }
    }
    let body = store.new_body();
    let received = receive(input.body, claim, &body.path).await?;
    let part = Part {
        number: input.part_number,
        etag: etag(&received.sums, received.bytes),
        segment: Segment { body: body.number, bytes: received.bytes },
        sums: received.sums,
        at: now,
    };
    store.change(&input.bucket, |bucket| {
        find(bucket, &input.key, &input.upload_id)?;
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        Ok(Change::Part { bucket, key, id: input.upload_id.clone(), part: part.clone() })
    })?;
    body.keep();
    let mut output = UploadPartOutput { e_tag: strong(&part.etag), ..Default::default() };
    give_sums!(output, &part.sums);
    give_head!(output, &head);
    Ok(output)
}

pub(super) fn complete(
    store: &Store,
    now: i64,
    input: &CompleteMultipartUploadInput,
) -> S3Result<CompleteMultipartUploadOutput> {
    let said = sums_of!(input);
    let listed = input.multipart_upload.as_ref().and_then(|upload| upload.parts.as_deref());
    let listed = listed.unwrap_or_default();
    let mut made = None;
    store.change(&input.bucket, |bucket| {
        let upload = find(bucket, &input.key, &input.upload_id)?;
        let parts = chosen(upload, listed)?;
        let object = assemble(upload, &parts, now)?;
        agree(upload, &object, &said, input)?;
        condition(bucket, &input.key, input.if_none_match.as_ref())?;
        made = Some(object.clone());
        let (bucket, id) = (input.bucket.clone(), input.upload_id.clone());
        Ok(Change::Complete { bucket, id, object })
    })?;
    let object = made.ok_or_else(|| s3_error!(InternalError))?;
    let kind = if object.composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT };
    let mut output = CompleteMultipartUploadOutput {
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        e_tag: strong(&object.etag),
        checksum_type: Some(ChecksumType::from_static(kind)),
        ..Default::default()
    };
    give_sums!(output, &object.sums);
    give_head!(output, &object.head);
    Ok(output)
}

/// The parts that were listed, each as it was stored.
fn chosen<'a>(upload: &'a Upload, listed: &[CompletedPart]) -> S3Result<Vec<&'a Part>> {
    let invalid = || {
        s3_error!(
            InvalidPart,
            "One or more of the specified parts could not be found, or did not match"
        )
    };
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    if !listed.is_sorted_by(|one, next| one.part_number < next.part_number) {
        return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
    }
    let mut parts: Vec<&Part> = vec![];
    for (place, count) in listed.iter().zip(1..) {
        let number = place.part_number.ok_or_else(invalid)?;
        let part = upload.parts.get(&number).ok_or_else(invalid)?;
        let same = |(of, sum): (&Algorithm, &String)| part.sums.get(of) == Some(sum);
        let sums = sums_of!(place);
        let etag = place.e_tag.as_ref().map(|etag| etag.value());
        if etag != Some(part.etag.as_str()) || !sums.iter().all(same) {
            return Err(invalid());
        }
        if let Some(of) = upload.algorithm.filter(|_| upload.composite)
            && !sums.contains_key(&of)
        {
            return Err(s3_error!(InvalidRequest, "a part was listed without its checksum"));
        }
        if count < listed.len() && part.segment.bytes < PART_BYTES_MIN {
            return Err(s3_error!(
                EntityTooSmall,
                "A part is smaller than the minimum allowed size"
            ));
        }
        parts.push(part);
    }
    Ok(parts)
}

fn assemble(upload: &Upload, parts: &[&Part], now: i64) -> S3Result<Object> {
    let whole = |of: Algorithm| {
        let sums =
            parts.iter().map(|part| Some((part.sums.get(&of)?.as_str(), part.segment.bytes)));
        full_object(of, sums.collect::<Option<Vec<_>>>()?.into_iter())
    };
    let crc64 = whole(Algorithm::Crc64Nvme).ok_or_else(|| s3_error!(InternalError))?;
    let bytes = parts.iter().map(|part| part.segment.bytes).sum();
    let base = etag(&[(Algorithm::Crc64Nvme, crc64)].into(), bytes);
    let of = upload.algorithm.unwrap_or(Algorithm::Crc64Nvme);
    let sum = if upload.composite {
        let sums = parts.iter().map(|part| part.sums.get(&of).map(String::as_str));
        sums.collect::<Option<Vec<_>>>().and_then(|sums| composite(of, sums.into_iter()))
    } else {
        whole(of)
    };
    let sum = sum.ok_or_else(|| s3_error!(InvalidRequest, "a part has no such checksum"))?;
    Ok(Object {
        key: upload.key.clone(),
        segments: parts.iter().map(|part| part.segment.clone()).collect(),
        etag: format!("{base}-{}", parts.len()),
        sums: [(of, sum)].into(),
        composite: upload.composite,
        head: upload.head.clone(),
        at: now,
    })
}

/// Whether the object is what the sender says it is.
fn agree(
    upload: &Upload,
    object: &Object,
    said: &Sums,
    input: &CompleteMultipartUploadInput,
) -> S3Result<()> {
    let kind = input.checksum_type.as_ref().map(|kind| kind.as_str() == ChecksumType::COMPOSITE);
    if kind.is_some_and(|composite| composite != upload.composite) {
        return Err(s3_error!(InvalidRequest, "The upload was created with another checksum type"));
    }
    for (of, sum) in said {
        let Some(ours) = object.sums.get(of) else {
            return Err(s3_error!(InvalidRequest, "The upload was created with another algorithm"));
        };
        // A composite may be given without its count.
        if ours != sum && ours.split('-').next() != Some(sum) {
            let why = format!("The {} you specified did not match what we received.", of.name());
            return Err(S3Error::with_message(S3ErrorCode::BadDigest, why));
        }
    }
    let size = input.mpu_object_size.map(u64::try_from);
    if size.is_some_and(|size| size != Ok(object.bytes())) {
        return Err(s3_error!(InvalidRequest, "x-amz-mp-object-size does not match the parts"));
    }
    Ok(())
}

pub(super) fn abort(
    store: &Store,
    input: AbortMultipartUploadInput,
) -> S3Result<AbortMultipartUploadOutput> {
    let AbortMultipartUploadInput { bucket, key, upload_id: id, .. } = input;
    store.change(&bucket, |found| {
        find(found, &key, &id)?;
        let (bucket, key, id) = (bucket.clone(), key.clone(), id.clone());
        Ok(Change::Abort { bucket, key, id })
    })?;
    Ok(AbortMultipartUploadOutput::default())
}

pub(super) fn parts(store: &Store, input: ListPartsInput) -> S3Result<ListPartsOutput> {
    let most = usize::try_from(input.max_parts.unwrap_or(1000).clamp(1, 1000)).unwrap_or(1000);
    let after = input.part_number_marker.unwrap_or(0);
    let upload = store.look(&input.bucket, |b| find(b, &input.key, &input.upload_id).cloned())?;
    let mut rest = upload.parts.into_values().filter(|part| part.number > after);
    let parts: Vec<Listed> = rest
        .by_ref()
        .take(most)
        .map(|part| {
            let mut listed = Listed {
                part_number: Some(part.number),
                size: i64::try_from(part.segment.bytes).ok(),
                e_tag: strong(&part.etag),
                last_modified: Some(time(part.at)),
                ..Default::default()
            };
            give_sums!(listed, &part.sums);
            listed
        })
        .collect();
    let truncated = rest.next().is_some();
    Ok(ListPartsOutput {
        next_part_number_marker: parts.last().and_then(|part| part.part_number),
        is_truncated: Some(truncated),
        max_parts: i32::try_from(most).ok(),
        parts: Some(parts),
        part_number_marker: Some(after),
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        ..Default::default()
    })
}

/// The open uploads, shown as begun `older` microseconds earlier.
pub(super) fn list(
    store: &Store,
    older: i64,
    input: ListMultipartUploadsInput,
) -> S3Result<ListMultipartUploadsOutput> {
    let most = usize::try_from(input.max_uploads.unwrap_or(1000).clamp(1, 1000)).unwrap_or(1000);
    let prefix = input.prefix.clone().unwrap_or_default();
    let key = input.key_marker.clone().unwrap_or_default();
    let id = input.upload_id_marker.clone();
    let past = |upload: &Upload| match &id {
        Some(id) => (&upload.key, &upload.id) > (&key, id),
        None => upload.key > key || key.is_empty(),
    };
    let (uploads, truncated) = store.look(&input.bucket, |bucket| {
        let ours = bucket.uploads.values().filter(|upload| upload.key.starts_with(&prefix));
        let mut rest = ours.filter(|upload| past(upload));
        let page: Vec<Upload> = rest.by_ref().take(most).cloned().collect();
        Ok((page, rest.next().is_some()))
    })?;
    let last = uploads.last().filter(|_| truncated);
    let (next_key, next_id) = (last.map(|l| l.key.clone()), last.map(|l| l.id.clone()));
    let listed = uploads.into_iter().map(|upload| MultipartUpload {
        key: Some(upload.key),
        upload_id: Some(upload.id),
        initiated: Some(time(upload.at - older)),
        checksum_algorithm: upload.algorithm.map(|of| ChecksumAlgorithm::from_static(of.name())),
        ..Default::default()
    });
    Ok(ListMultipartUploadsOutput {
        uploads: Some(listed.collect()),
        is_truncated: Some(truncated),
        next_key_marker: next_key,
        next_upload_id_marker: next_id,
        key_marker: input.key_marker,
        upload_id_marker: input.upload_id_marker,
        max_uploads: i32::try_from(most).ok(),
        prefix: input.prefix,
        bucket: Some(input.bucket),
        ..Default::default()
    })
}

const PART_BYTES_MIN: u64 = 5 << 20;
