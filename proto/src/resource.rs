use uuid::Uuid;

/// A resource name does not have the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a name of the form {collection}/{{id}}, the id a UUID")]
pub struct InvalidName {
    collection: &'static str,
    given: String,
}

/// Makes a resource name such as `incidents/018f…` after Google's AIP-122.
pub fn resource_name(collection: &str, id: Uuid) -> String {
    format!("{collection}/{id}")
}

/// Reads a resource name, or a bare id, of the given collection.
///
/// # Errors
/// [`InvalidName`] when the text names another collection or its id is not a UUID.
pub fn parse_name(collection: &'static str, name: &str) -> Result<Uuid, InvalidName> {
    let id = match name.split_once('/') {
        Some((given, id)) if given == collection => id,
        Some(_) => "",
        None => name,
    };
    Uuid::parse_str(id).map_err(|_| InvalidName {
        collection,
        given: name.chars().take(120).collect(),
    })
}
