//! Makes the policies of a Kubernetes cluster true.
