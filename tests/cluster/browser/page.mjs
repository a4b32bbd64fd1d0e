// Chromium with one page, its errors noted; and how a script of this folder is run:
//   node SCRIPT.mjs URL PICTURES ARGUMENT…
// OSIER_TEST_BROWSER names the folder whose node_modules has Playwright.

import { createRequire } from 'node:module';

const DEADLINE = 60_000;

/** Runs `visit(page, ...arguments)` on the site, then takes a picture; ends the process with 1 and the reason when something fails. */
export async function run(visit) {
  const [url, pictures, ...words] = process.argv.slice(2);
  const folder = process.env.OSIER_TEST_BROWSER;
  if (!url || !pictures || !folder) {
    console.error('URL, PICTURES and OSIER_TEST_BROWSER are needed');
    process.exit(1);
  }
  const { chromium } = createRequire(`${folder}/`)('playwright-core');
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium' });
  const page = await browser.newPage({ viewport: { width: 1100, height: 900 } });
  page.setDefaultTimeout(DEADLINE);
  const errors = [];
  page.on('pageerror', (error) => errors.push(`in the page: ${error.message}`));
  page.on('response', (response) => {
    if (response.status() >= 500) errors.push(`${response.status()} for ${response.url()}`);
  });
  try {
    await open(page, url);
    await visit(page, url, ...words);
    if (errors.length > 0) throw new Error(errors.join('\n'));
  } catch (error) {
    console.error(`${error.message}\nat ${page.url()}`);
    process.exitCode = 1;
  } finally {
    await page.screenshot({ path: `${pictures}-${words.join('-').replace(/[^a-z0-9-]+/gi, '_')}.png`, fullPage: true });
    await browser.close();
  }
}

/** Opens the site, as soon as somebody listens there. */
async function open(page, url) {
  const end = Date.now() + DEADLINE;
  for (;;) {
    try {
      return await page.goto(url);
    } catch (error) {
      if (!error.message.includes('ERR_CONNECTION_REFUSED') || Date.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/** Fails unless it is so. */
export function check(is, what) {
  if (!is) throw new Error(what);
}
