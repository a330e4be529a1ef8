use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
    sync::{Arc, LazyLock},
};

use cedar_policy::{
    Authorizer as Cedar, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};

use crate::caller::{Caller, Principal};

const SCHEMA: &str = include_str!("../policies/schema.cedarschema");
const POLICY: &str = include_str!("../policies/garrison.cedar");
/// The policy that demands a second factor; the only one whose refusal is told apart, because people can help it.
const SECOND_FACTOR: &str = "second-factor";

/// Whether a method changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Only reads.
    Reads,
    /// Changes state, or hands out credentials; every decision about it is recorded.
    Mutates,
}

/// What the policies say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Admitted.
    Allow,
    /// Not admitted.
    Deny,
    /// Would be admitted with a second factor.
    SecondFactor,
}

/// The policies that are compiled in do not fit together. The tests of this crate make sure that they do.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct PolicyError {
    what: &'static str,
    reason: String,
}

/// Cedar policies over the methods of every contract. Deny by default.
#[derive(Debug)]
pub struct Authorizer {
    cedar: Cedar,
    policies: PolicySet,
    schema: Schema,
    methods: HashMap<String, (EntityUid, Effect)>,
    actions: Entities,
}

static SHARED: LazyLock<Arc<Authorizer>> = LazyLock::new(|| {
    let authorizer = Authorizer::load(SCHEMA, POLICY).expect("the compiled-in policies fit their schema (tested)");
    Arc::new(authorizer)
});

impl Authorizer {
    /// The policies of this build, read once a process.
    pub fn shared() -> Arc<Self> {
        Arc::clone(&SHARED)
    }

    fn load(schema: &str, policy: &str) -> Result<Self, PolicyError> {
        let fail = |what, reason: String| PolicyError { what, reason };
        let (schema, _) =
            Schema::from_cedarschema_str(schema).map_err(|e| fail("reading the schema", e.to_string()))?;
        let parsed = PolicySet::from_str(policy).map_err(|e| fail("reading the policies", e.to_string()))?;
        let policies = named(&parsed)?;
        let validation = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        if !validation.validation_passed() {
            let errors: Vec<String> = validation.validation_errors().map(ToString::to_string).collect();
            return Err(fail("validating the policies", errors.join("; ")));
        }
        let actions = schema
            .action_entities()
            .map_err(|e| fail("reading the actions", e.to_string()))?;
        let mut methods = HashMap::new();
        for action in actions.iter() {
            let uid = action.uid();
            let id = uid.id().unescaped().to_owned();
            if !id.contains('/') {
                continue; // a group
            }
            let groups: HashSet<String> = actions
                .ancestors(&uid)
                .into_iter()
                .flatten()
                .map(|group| group.id().unescaped().to_owned())
                .collect();
            let effect = match (groups.contains("reads"), groups.contains("mutates")) {
                (true, false) => Effect::Reads,
                (false, true) => Effect::Mutates,
                _ => {
                    return Err(fail("an action must be in exactly one of reads and mutates", id));
                }
            };
            methods.insert(id, (uid, effect));
        }
        Ok(Self {
            cedar: Cedar::new(),
            policies,
            schema,
            methods,
            actions,
        })
    }

    /// What a method (`package.Service/Method`) does. `None` when no contract has it.
    pub fn effect(&self, method: &str) -> Option<Effect> {
        self.methods.get(method).map(|(_, effect)| *effect)
    }

    /// Every method there is a rule for.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.keys().map(String::as_str)
    }

    /// Whether the caller may call the method in the caller's tenant.
    pub fn decide(&self, caller: &Caller, method: &str) -> Verdict {
        let Some((action, _)) = self.methods.get(method) else {
            return Verdict::Deny;
        };
        match self.ask(caller, action) {
            Ok(verdict) => verdict,
            Err(error) => {
                // Cannot happen with the compiled-in schema; if it does, the answer is no.
                tracing::error!(%error, method, "the policies could not be asked");
                Verdict::Deny
            }
        }
    }

    fn ask(&self, caller: &Caller, action: &EntityUid) -> Result<Verdict, PolicyError> {
        let fail = |what| move |reason: String| PolicyError { what, reason };
        let tenant = uid("Tenant", caller.tenant.as_str())?;
        let (principal, parents, attributes) = match &caller.principal {
            Principal::User { id, .. } => {
                let roles = caller
                    .roles
                    .iter()
                    .map(|role| uid("Role", role))
                    .collect::<Result<HashSet<_>, _>>()?;
                let attributes = HashMap::from([
                    (
                        "tenant".to_owned(),
                        RestrictedExpression::new_entity_uid(tenant.clone()),
                    ),
                    (
                        "second_factor".to_owned(),
                        RestrictedExpression::new_bool(caller.second_factor),
                    ),
                ]);
                (uid("User", &id.to_string())?, roles, attributes)
            }
            Principal::Service { name } => (uid("Service", name)?, HashSet::new(), HashMap::new()),
            Principal::Enforcer { node } => (uid("Enforcer", node)?, HashSet::new(), HashMap::new()),
            Principal::Anonymous => (uid("Anonymous", "anonymous")?, HashSet::new(), HashMap::new()),
        };
        let mut entities = vec![Entity::new_no_attrs(tenant.clone(), HashSet::new())];
        entities.extend(
            parents
                .iter()
                .map(|role| Entity::new_no_attrs(role.clone(), HashSet::new())),
        );
        let entity = Entity::new(principal.clone(), attributes, parents)
            .map_err(|e| fail("describing the caller")(e.to_string()))?;
        entities.push(entity);
        let entities = self
            .actions
            .clone()
            .add_entities(entities, None)
            .map_err(|e| fail("describing the caller")(e.to_string()))?;
        let request = Request::new(principal, action.clone(), tenant, Context::empty(), Some(&self.schema))
            .map_err(|e| fail("making the request")(e.to_string()))?;
        let response = self.cedar.is_authorized(&request, &self.policies, &entities);
        if let Some(error) = response.diagnostics().errors().next() {
            return Err(fail("evaluating the policies")(error.to_string()));
        }
        if response.decision() == Decision::Allow {
            return Ok(Verdict::Allow);
        }
        let factor = response
            .diagnostics()
            .reason()
            .any(|id| AsRef::<str>::as_ref(id) == SECOND_FACTOR);
        // A forbidding policy hides whether a permitting one applied: ask again as if the factor were there.
        if factor && !caller.second_factor {
            let with = Caller {
                second_factor: true,
                ..caller.clone()
            };
            if self.ask(&with, action)? == Verdict::Allow {
                return Ok(Verdict::SecondFactor);
            }
        }
        Ok(Verdict::Deny)
    }
}

/// Gives each policy the id of its `@id` annotation, by which decisions are explained.
fn named(parsed: &PolicySet) -> Result<PolicySet, PolicyError> {
    let policies = parsed.policies().map(|policy| match policy.annotation("id") {
        Some(id) => policy.new_id(cedar_policy::PolicyId::new(id)),
        None => policy.clone(),
    });
    PolicySet::from_policies(policies).map_err(|e| PolicyError {
        what: "naming the policies",
        reason: e.to_string(),
    })
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, PolicyError> {
    let kind = EntityTypeName::from_str(kind).map_err(|e| PolicyError {
        what: "naming an entity type",
        reason: e.to_string(),
    })?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

#[cfg(test)]
mod tests;
