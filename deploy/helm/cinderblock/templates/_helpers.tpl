{{- define "cinderblock.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "cinderblock.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "cinderblock.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels by which pods are found: they never change. */}}
{{- define "cinderblock.selectorLabels" -}}
app.kubernetes.io/name: {{ include "cinderblock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cinderblock.labels" -}}
{{ include "cinderblock.selectorLabels" . }}
{{- if .Chart.AppVersion }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "cinderblock.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The host by which nodes find the controllers, and for which their certificate is. */}}
{{- define "cinderblock.serverName" -}}
{{ include "cinderblock.fullname" . }}-controller.{{ .Release.Namespace }}.svc
{{- end }}

{{/* What every container but the node's gets. */}}
{{- define "cinderblock.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Flags of all sidecars. An orderly end hands the lease over at once. */}}
{{- define "cinderblock.sidecarArgs" -}}
- --csi-address=/csi/csi.sock
- --timeout=60s
- --leader-election=true
- --feature-gates=ReleaseLeaderElectionOnExit=true
- --kube-api-qps=50
- --kube-api-burst=100
- --retry-interval-max=1m
{{- end }}
