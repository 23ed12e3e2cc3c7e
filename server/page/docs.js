// Shows /openapi.json to people.

const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const named = (ref) => ref.split("/").pop();

/** A type in words, its own types as links. */
function type(schema) {
  if (!schema || Object.keys(schema).length === 0) return ["anything"];
  if (schema.$ref) return [element("a", { href: `#${named(schema.$ref)}` }, named(schema.$ref))];
  const several = schema.oneOf ?? schema.anyOf ?? schema.allOf;
  if (several) {
    const parts = several.filter((s) => s.type !== "null").map(type);
    return parts.flatMap((part, i) => (i ? [" or ", ...part] : part));
  }
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  const types = [schema.type].flat().filter((name) => name && name !== "null");
  if (types.includes("array")) return ["[", ...type(schema.items ?? {}), ", …]"];
  return [types.join(" or ") || "anything"];
}

function fields(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) =>
    element("tr", {},
      element("td", {}, name + ((schema.required ?? []).includes(name) ? " *" : "")),
      element("td", {}, ...type(field)),
      element("td", {}, field.description ?? "")));
  return element("table", {}, element("tbody", {}, ...rows));
}

function route(path, method, operation) {
  const code = element("code", {}, `${method.toUpperCase()} ${path}`);
  const made = element("details", { class: "route" }, element("summary", {}, code, ` — ${operation.summary ?? ""}`));
  if (operation.description) made.append(element("p", {}, operation.description));
  const body = operation.requestBody?.content?.["application/json"];
  if (body) {
    made.append(element("p", {}, "Body: ", ...type(body.schema)));
    if (body.example) made.append(element("pre", {}, JSON.stringify(body.example, null, 1)));
  }
  const answers = Object.entries(operation.responses ?? {}).map(([status, answer]) => {
    const schema = Object.values(answer.content ?? {})[0]?.schema;
    return element("tr", {}, element("td", {}, status), element("td", {}, answer.description ?? ""), element("td", {}, ...(schema ? type(schema) : [])));
  });
  made.append(element("table", { class: "schema" }, element("tbody", {}, ...answers)));
  return made;
}

const api = await (await fetch("/openapi.json")).json();
document.getElementById("about").textContent = `${api.info.title} ${api.info.version}`;
document.getElementById("text").textContent = api.info.description ?? "";
document.getElementById("routes").append(...Object.entries(api.paths).flatMap(([path, item]) =>
  Object.entries(item).map(([method, operation]) => route(path, method, operation))));
document.getElementById("types").append(...Object.entries(api.components.schemas).map(([name, schema]) => {
  const made = element("section", { class: "schema", id: name }, element("h3", {}, name), element("p", {}, schema.description ?? ""));
  made.append(schema.properties ? fields(schema) : element("p", {}, ...type(schema)));
  return made;
}));
